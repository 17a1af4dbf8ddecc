// Puts the page together: what is looked for changes, and address, terms and pictures follow.

import * as api from "./api.js";
import { addPictures, startClasses } from "./classes.js";
import { startDetail } from "./detail.js";
import { by, debounced, plural } from "./dom.js";
import { startDrop } from "./drop.js";
import { Grid } from "./grid.js";
import { notice } from "./notice.js";
import { Query } from "./query.js";
import { showTerms } from "./terms.js";

const LOOK_AGAIN_MS = 10_000;
const MAX_MIB = 20;

let hasIndex = true;
const query = Query.read(location.search, () => changed());
const grid = new Grid(query, () => look());
by("text").value = query.text;  // Before anything is awaited: what is typed meanwhile stays.

function changed() {
  if (by("text").value !== query.text && document.activeElement !== by("text")) by("text").value = query.text;
  by("where").value = query.where;
  if (query.where) by("filters").open = true;
  showTerms(query);
  const told = query.toString();
  history.replaceState(null, "", told ? `?${told}${location.hash}` : `${location.pathname}${location.hash}`);
  if (hasIndex) grid.show();
}

const typed = debounced(() => query.set({ text: by("text").value, where: by("where").value }));
by("text").addEventListener("input", typed);
by("where").addEventListener("change", typed);
by("asking").addEventListener("submit", (event) => {
  event.preventDefault();
  query.set({ text: by("text").value, where: by("where").value });
});
addEventListener("keydown", (event) => {
  const isWriting = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
  if (event.key === "/" && !isWriting && !by("detail").open) {
    event.preventDefault();
    open("search");
    by("text").focus();
  }
});

startDetail();
startClasses();
startDrop(async (files, given) => {
  const small = files.filter((file) => file.size <= MAX_MIB * 2 ** 20);
  const isClasses = !by("classes").hidden;
  const status = by(isClasses ? "class-status" : "status");
  if (small.length < given) status.textContent = `Only pictures of up to ${MAX_MIB} MiB can be used.`;
  if (isClasses) await addPictures(small);
  else for (const file of small.slice(0, 4)) query.drop(await api.contentOf(file), file.name || "pasted picture");
});

// Tabs, as the pattern for them has it: arrow keys go between them.
const tabs = [by("tab-search"), by("tab-classes")];
function open(name) {
  for (const tab of tabs) {
    const is = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    by(tab.getAttribute("aria-controls")).hidden = !is;
  }
  history.replaceState(null, "", `${location.pathname}${location.search}${name === "search" ? "" : `#${name}`}`);
}
tabs.forEach((tab, number) => {
  tab.addEventListener("click", () => open(tab.id.slice(4)));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs[1 - number];
    open(other.id.slice(4));
    other.focus();
  });
});

// The state of model and index, in the footer.
async function look() {
  try {
    const told = await api.info();
    hasIndex = told.pictures !== null;
    by("state").className = "good";
    by("state-text").textContent = "Ready";
    const size = Array.isArray(told.image_px) ? told.image_px.join("×") : told.image_px;
    const held = hasIndex ? plural(told.pictures, "picture") : "no index";
    by("about").textContent = `${held} · model ${told.bundle ?? told.model.slice(0, 12)}, ${told.dim} numbers, sees ${size} px, on ${told.device} · Diptych ${told.version}`;
  } catch (error) {
    by("state").className = "bad";
    by("state-text").textContent = error.message;
  }
}

await look();
setInterval(look, LOOK_AGAIN_MS);
if (location.hash === "#classes" || !hasIndex) open("classes");
if (hasIndex) changed();
else notice("This server has no index", "Start it with --index to search pictures. Classes work without.");
