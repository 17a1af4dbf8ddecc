// Puts the page together: what is looked for changes, and address, terms and pictures follow.

import * as api from "./api.js";
import { MAX_PICTURES, addPictures, numFree, startClasses } from "./classes.js";
import { closeDetail, openDetail, startDetail } from "./detail.js";
import { by, debounced, plural } from "./dom.js";
import { startDrop } from "./drop.js";
import { Grid } from "./grid.js";
import { notice } from "./notice.js";
import { Places } from "./places.js";
import { MAX_TERMS, Query } from "./query.js";
import { showTerms } from "./terms.js";
import { showUnused } from "./unused.js";

const LOOK_AGAIN_MS = 10_000;
const DROPPED_AT_ONCE = 4;

let hasIndex = true;
let numSearches = 0;
let shownSearch = 0; // Number of the search whose hits are shown.
let shownWhere = "";
let wasTyping = false;
const query = Query.read(location.search, (isTyping) => changed(isTyping));
const places = new Places(restore);
const grid = new Grid(query, {
  gone: look,
  opened: (number) => {
    openDetail(grid, number, query);
    places.push(address(grid.hits[number].id), { ...places.memory });
  },
  counted: (num) => { places.memory.shown = num; },
});
by("text").value = query.text;  // Before anything is awaited: what is typed meanwhile stays.

function address(picture) {
  const told = query.toString(picture);
  return `${location.pathname}${told && `?${told}`}${by("classes").hidden ? "" : "#classes"}`;
}

/** Every change adds a history entry. Uninterrupted typing adds only one. */
function changed(isTyping = false) {
  draw(by("text") === document.activeElement);
  const known = places.memory.terms ?? [];
  const isSame = address() === location.pathname + location.search + location.hash
    && known.length === query.terms.length
    && query.terms.every(({ id, content, weight }, at) => id === known[at].id && content === known[at].content && weight === known[at].weight);
  const isReplaced = isSame || (isTyping && wasTyping);
  wasTyping = isTyping;
  shownSearch = numSearches += 1;
  const memory = { terms: query.terms.map((term) => ({ ...term })), search: shownSearch };
  if (isReplaced) places.replace(address(), memory);
  else places.push(address(), memory);
  if (hasIndex) grid.show();
}

function draw(isTextKept) {
  if (!isTextKept) by("text").value = query.text;
  if (query.where !== shownWhere) by("where").value = shownWhere = query.where;
  if (query.where) by("filters").open = true;
  by("group").checked = query.isGrouped;
  showTerms(query);
  showWhereState();
}

function showWhereState() {
  const isWaiting = by("where").value.trim() !== query.where.trim();
  by("where-state").textContent = isWaiting ? "Not applied yet: press Enter or choose Apply." : "";
  by("where-state").classList.toggle("waiting", isWaiting);
}

/** Show the history entry that Back or Forward selected. */
async function restore(memory) {
  const { scroll = 0, shown } = memory;
  wasTyping = false;
  const isOtherTab = openTab(location.hash === "#classes" ? "classes" : "search");
  const isOther = memory.search === undefined || memory.search !== shownSearch;
  if (isOther) {
    closeDetail();
    query.load(location.search, memory.terms);
    shownSearch = memory.search ??= numSearches += 1;
    draw(false);
    if (hasIndex) await grid.show(shown);
    if (places.memory !== memory) return; // Another history entry was selected.
  }
  if (isOther || isOtherTab) scrollTo(0, scroll);
  openFromAddress();
}

/** Open the large view of the picture in the address, if it is among the hits. */
function openFromAddress() {
  const id = pictureOfAddress();
  const number = id ? grid.find(id) : -1;
  if (number >= 0) openDetail(grid, number, query);
  else closeDetail();
}

const pictureOfAddress = () => new URLSearchParams(location.search).get("picture");

const typed = debounced(() => query.text !== by("text").value && query.set({ text: by("text").value }, { isTyping: true }));
by("text").addEventListener("input", typed);
by("text").addEventListener("blur", () => { wasTyping = false; });
by("where").addEventListener("input", showWhereState);
by("group").addEventListener("change", () => query.set({ isGrouped: by("group").checked }));
by("asking").addEventListener("submit", (event) => {
  event.preventDefault();
  query.set({ text: by("text").value, where: by("where").value });
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // The part of the address after # names the tab.
  by("content").focus();
});
addEventListener("keydown", (event) => {
  const isWriting = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
  if (event.key === "/" && !isWriting && !by("detail").open) {
    event.preventDefault();
    open("search");
    by("text").focus();
  }
});

startDetail(
  (hit) => places.replace(address(hit.id)),
  () => {
    if (!pictureOfAddress()) return;
    if (places.isPushed) history.back();
    else places.replace(address());
  },
);
startClasses();
startDrop(
  () => by("classes").hidden
    ? { num: Math.min(DROPPED_AT_ONCE, query.numFree), reason: `a search takes ${DROPPED_AT_ONCE} pictures at once and ${MAX_TERMS} in all` }
    : { num: numFree(), reason: `there are at most ${MAX_PICTURES} pictures; remove some` },
  async (pictures, unused) => {
    showUnused(unused);
    if (!by("classes").hidden) await addPictures(pictures);
    else if (pictures.length) query.drop(pictures);
  },
);

// Tabs follow the keyboard pattern of the ARIA practices: arrow keys switch between them.
const tabs = [by("tab-search"), by("tab-classes")];

function open(name) {
  if (openTab(name)) places.push(address(), { ...places.memory, scroll: 0 });
}

/** Whether another tab was open. */
function openTab(name) {
  const isOther = by(name).hidden;
  for (const tab of tabs) {
    const is = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    by(tab.getAttribute("aria-controls")).hidden = !is;
  }
  return isOther;
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
    by("detail").dataset.heatMaps = told.heat_maps;
    by("state").className = "good";
    by("state-text").textContent = "Ready";
    const size = Array.isArray(told.image_px) ? told.image_px.join("×") : told.image_px;
    const unread = told.unreadable ? `, ${plural(told.unreadable, "file")} could not be read` : "";
    const others = (told.left_out ?? []).map((one) => `${one.num} ${one.suffix} (${one.remedy ?? "index the folder again"})`);
    const leftOut = others.length ? `; left out: ${others.join(", ")}` : "";
    const held = hasIndex ? `${plural(told.pictures, "picture")}${unread}${leftOut}` : "no index";
    by("about").textContent = `${held} · model ${told.bundle ?? told.model.slice(0, 12)}, ${told.dim} numbers, sees ${size} px, on ${told.device} · Diptych ${told.version}`;
  } catch (error) {
    by("state").className = "bad";
    by("state-text").textContent = error.message;
  }
}

await look();
setInterval(look, LOOK_AGAIN_MS);
if (location.hash === "#classes" || !hasIndex) openTab("classes");
if (hasIndex) {
  shownSearch = numSearches += 1;
  places.replace(address(pictureOfAddress()), { terms: query.terms.map((term) => ({ ...term })), search: shownSearch });
  draw(true);
  await grid.show();
  openFromAddress();
} else notice("This server has no index", "Start it with --index to search pictures. Classes work without.");
