// One picture, large: what is known of it, and what in it speaks for the text that was looked for.

import * as api from "./api.js";
import { by, make, plural } from "./dom.js";

let grid;
let here = 0;
let first = 0; // Which one was opened.
let query;
let moved; // Called with the shown hit.
let isClosedByPage = false;

export function openDetail(found, number, asked) {
  grid = found;
  query = asked;
  first = number;
  show(number);
  isClosedByPage = false;
  if (!by("detail").open) by("detail").showModal();
}

/** Close the large view without calling `onClose`, because the address has changed already. */
export function closeDetail() {
  isClosedByPage = true;
  by("detail").close();
}

/** `onMove` is called with each hit that Next or Previous shows, `onClose` when the user closes the large view. */
export function startDetail(onMove, onClose) {
  const dialog = by("detail");
  moved = onMove;
  by("detail-close").addEventListener("click", () => dialog.close());
  by("detail-before").addEventListener("click", () => go(here - 1));
  by("detail-after").addEventListener("click", () => go(here + 1));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement) return;
    if (event.key === "ArrowLeft") go(here - 1);
    if (event.key === "ArrowRight") go(here + 1);
  });
  dialog.addEventListener("close", () => {
    if (dialog.open) return; // The event is asynchronous: Forward may have opened the view again.
    if (here !== first) document.querySelectorAll("#grid .open")[here]?.focus(); // Else the browser goes back by itself.
    if (!isClosedByPage) onClose();
  });
}

/** Show another hit. After the last one, load the next page first. */
async function go(number) {
  if (number >= grid.hits.length && grid.hasMore) {
    const from = here;
    by("detail-position").textContent = "Loading more…";
    await grid.more();
    if (here !== from || !by("detail").open) return; // The user has opened another hit.
    showPosition();
  }
  if (!grid.hits[number]) return;
  show(number);
  moved(grid.hits[number]);
}

function show(number) {
  here = number;
  const hit = grid.hits[number];
  by("detail-name").textContent = hit.name;
  showPosition();
  showPicture(api.fileOf(hit.id), hit.captions[0] ?? hit.name, false);
  by("detail-words").replaceChildren(...words(hit));
}

function showPosition() {
  const num = grid.hits.length;
  by("detail-before").disabled = here === 0;
  by("detail-after").disabled = here === num - 1 && !grid.hasMore;
  by("detail-position").textContent = `${here + 1} of ${num}${grid.hasMore ? " so far" : ""}`;
}

function showPicture(source, alt, isHeat) {
  const image = by("detail-picture");
  image.classList.toggle("heat", isHeat);
  image.alt = alt;
  image.src = source;
}

function words(hit) {
  const path = hit.absolute_path ?? hit.path;
  const facts = [["Cosine", hit.score?.toFixed(3)], ["Path", path], ["Size", hit.width && `${hit.width} × ${hit.height} px`], ["Taken", hit.taken]];
  const list = make("dl", {});
  for (const [name, value] of facts) if (value) list.append(make("dt", { className: "soft", textContent: name }), make("dd", { textContent: value }));
  const captions = hit.captions.map((caption) => make("p", { textContent: `“${caption}”` }));
  const parts = [list, ...captions, likes(hit)];
  if (hit.similar?.length) parts.push(similar(hit));
  if (query.text.trim() && by("detail").dataset.heatMaps !== "false") parts.push(heat(hit));
  parts.push(make("a", { href: api.fileOf(hit.id), download: hit.name, textContent: "Save the picture" }));
  return parts;
}

/** A button that shows the first picture folded into this one. Next shows the others. */
function similar(hit) {
  const button = make("button", { type: "button", textContent: `Show ${plural(hit.similar.length, "similar picture")}` });
  button.addEventListener("click", () => {
    grid.unfold(hit);
    go(here + 1);
  });
  return button;
}

function likes(hit) {
  const button = (weight, text) => {
    const made = make("button", { type: "button", textContent: text });
    made.addEventListener("click", () => {
      query.like(hit.id, weight);
      by("detail").close();
      by("text").focus();
    });
    return made;
  };
  return make("div", { className: "pair" }, button(1, "+ More like this"), button(-0.5, "− Less like this"));
}

/** Red where the picture speaks for the text; the model sees its middle square. */
function heat(hit) {
  const text = query.text.trim();
  const button = make("button", { type: "button", textContent: `What speaks for “${text}”?`, "aria-pressed": "false" });
  button.addEventListener("click", () => {
    const isShown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!isShown));
    if (isShown) showPicture(api.fileOf(hit.id), hit.captions[0] ?? hit.name, false);
    else showPicture(api.heatOf(hit.id, text), `Heat-map: what in ${hit.name} speaks for ${text}`, true);
  });
  return button;
}
