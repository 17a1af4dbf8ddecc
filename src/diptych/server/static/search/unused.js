// The list of unused files that were dropped, pasted or chosen, with the reasons.

import { by, make } from "./dom.js";

let unused = []; // { name, reason }

export function showUnused(files) {
  unused = files;
  draw();
}

export function addUnused(name, reason) {
  unused.push({ name, reason });
  draw();
}

function draw() {
  by("unused").replaceChildren();
  by("unused").classList.toggle("bad", unused.length > 0);
  if (unused.length === 0) return;
  const names = new Map(); // By reason.
  for (const { name, reason } of unused) names.set(reason, [...(names.get(reason) ?? []), name]);
  const rows = [...names].map(([reason, some]) => make("li", {}, make("b", { textContent: some.join(", ") }), `: ${reason}`));
  const list = make("ul", { tabIndex: 0, "aria-label": "Files that are not used" }, ...rows);
  const close = make("button", { type: "button", textContent: "✕", title: "Close", "aria-label": "Close the list of files" });
  close.addEventListener("click", () => showUnused([]));
  by("unused").append(make("p", { textContent: "Not used:" }), list, close);
}
