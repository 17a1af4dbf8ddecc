// Pictures and the names of classes: which is it, and how sure is that?

import * as api from "./api.js";
import { by, debounced, make, plural } from "./dom.js";

const SHOWN = 6;
let pictures = []; // { content, name }
let asking = new AbortController();

export function startClasses() {
  const again = debounced(answer, 350);
  by("names").addEventListener("input", again);
  by("template").addEventListener("input", again);
  by("classing").addEventListener("submit", (event) => event.preventDefault());
  answer();
}

export async function addPictures(files) {
  for (const file of files) pictures.push({ content: await api.contentOf(file), name: file.name || "pasted picture" });
  pictures = pictures.slice(-32);
  await answer();
}

async function answer() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const classes = [...new Set(by("names").value.split("\n").map((name) => name.trim()).filter(Boolean))];
  const status = by("class-status");
  if (pictures.length === 0) {
    status.textContent = "Choose, drop or paste pictures.";
    return;
  }
  if (classes.length === 0) {
    status.textContent = "Write at least one class.";
    return;
  }
  status.textContent = "…";
  try {
    const body = { images: pictures.map((one) => one.content), classes, templates: [by("template").value || "{}"] };
    const found = await api.classify(body, signal);
    by("answers").replaceChildren(...found.images.map((one, number) => card(pictures[number], one)));
    status.textContent = `${plural(pictures.length, "picture")}, ${plural(classes.length, "class", "classes")}`;
  } catch (error) {
    if (error.name !== "AbortError") status.textContent = error.message;
  }
}

function card(picture, found) {
  const bars = found.scores.slice(0, SHOWN).map(({ name, probability }) => {
    const percent = `${(100 * probability).toFixed(1)} %`;
    const bar = make("i", {});
    bar.style.width = `${100 * probability}%`;
    const track = make("span", { className: "track", "aria-hidden": "true" }, bar);
    return make("li", {}, make("span", { className: "name", textContent: name }), make("span", { textContent: percent }), track);
  });
  const image = make("img", { src: picture.content, alt: `${picture.name}: ${found.scores[0].name}` });
  return make("li", { className: "answer" }, image, make("ul", {}, ...bars));
}
