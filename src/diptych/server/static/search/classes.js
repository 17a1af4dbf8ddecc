// The Classes tab: pictures, names of classes, and the probability of each class.

import * as api from "./api.js";
import { by, debounced, make, plural } from "./dom.js";

const SHOWN = 6;
const REQUEST_CHARS = 28 * 2 ** 20; // The server accepts bodies of up to 32 MiB.
export const MAX_PICTURES = 32;
let pictures = []; // { content, name, problem }
let asking = new AbortController();

export function startClasses() {
  const again = debounced(answer, 350);
  by("names").addEventListener("input", again);
  by("template").addEventListener("input", again);
  by("classing").addEventListener("submit", (event) => event.preventDefault());
  by("remove-all").addEventListener("click", () => {
    pictures = [];
    by("class-files").focus();
    answer();
  });
  answer();
}

/** How many more pictures can be added. */
export const numFree = () => MAX_PICTURES - pictures.length;

export async function addPictures(added) {
  pictures.push(...added);
  await answer();
}

function remove(picture) {
  const number = pictures.indexOf(picture);
  pictures.splice(number, 1);
  by("answers").children[number]?.remove();
  const buttons = by("answers").querySelectorAll("button");
  (buttons[Math.min(number, buttons.length - 1)] ?? by("class-files")).focus();
  answer();
}

async function answer() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const classes = [...new Set(by("names").value.split("\n").map((name) => name.trim()).filter(Boolean))];
  by("remove-all").hidden = pictures.length < 2;
  if (pictures.length === 0) {
    by("answers").replaceChildren();
    tell("Choose, drop or paste pictures.");
    return;
  }
  if (classes.length === 0) {
    show(new Map());
    tell("Write at least one class.");
    return;
  }
  tell("…");
  try {
    show(await classified({ classes, templates: [by("template").value || "{}"] }, signal));
    const num = pictures.filter((one) => !one.problem).length;
    const bad = pictures.length - num;
    tell(`${plural(num, "picture")}, ${plural(classes.length, "class", "classes")}${bad ? `; ${bad} cannot be used` : ""}`);
  } catch (error) {
    if (error.name === "AbortError") return;
    show(new Map());
    tell(error.message);
  }
}

/** Map from pictures to their classes. A picture that the server cannot use is marked and left out. */
async function classified(body, signal) {
  const found = new Map();
  let left = pictures.filter((one) => !one.problem);
  while (left.length) {
    const some = fitting(left);
    try {
      const { images } = await api.classify({ images: some.map((one) => one.content), ...body }, signal);
      images.forEach((one, number) => found.set(some[number], one));
      left = left.slice(some.length);
    } catch (error) {
      const bad = some[error.image];
      if (!bad) throw error;
      bad.problem = error.reason;
      left = left.filter((one) => one !== bad);
    }
  }
  return found;
}

/** As many of the first pictures as fit into one request; at least one. */
function fitting(some) {
  let chars = 0;
  const end = some.findIndex((one, number) => (chars += one.content.length) > REQUEST_CHARS && number > 0);
  return end < 0 ? some : some.slice(0, end);
}

/** Show one card per picture, and keep the focus on a remove button. */
function show(found) {
  const focused = [...by("answers").children].findIndex((one) => one.contains(document.activeElement));
  by("answers").replaceChildren(...pictures.map((one) => card(one, found.get(one))));
  by("answers").children[focused]?.querySelector("button").focus();
}

const tell = (text) => { by("class-status").textContent = text; };

function card(picture, found) {
  const button = make("button", { type: "button", textContent: "✕", title: "Remove", "aria-label": `Remove ${picture.name}` });
  button.addEventListener("click", () => remove(picture));
  const bar = make("div", { className: "bar" }, make("span", { className: "file", textContent: picture.name, title: picture.name }), button);
  if (picture.problem) {
    const reason = make("p", { textContent: `Cannot be used: ${picture.problem}` });
    return make("li", { className: "answer bad" }, bar, reason);
  }
  const image = make("img", { src: picture.content, alt: found ? `${picture.name}: ${found.scores[0].name}` : picture.name });
  return make("li", { className: "answer" }, bar, image, make("ul", {}, ...(found?.scores ?? []).slice(0, SHOWN).map(score)));
}

function score({ name, probability }) {
  const bar = make("i", {});
  bar.style.width = `${100 * probability}%`;
  const track = make("span", { className: "track", "aria-hidden": "true" }, bar);
  const percent = make("span", { textContent: `${(100 * probability).toFixed(1)} %` });
  return make("li", {}, make("span", { className: "name", textContent: name }), percent, track);
}
