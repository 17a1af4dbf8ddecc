// The row of pictures that a search is made of, with their weights.

import { thumbOf } from "./api.js";
import { by, make } from "./dom.js";

export function showTerms(query) {
  by("terms").replaceChildren(...query.terms.map((term) => row(query, term)));
}

function row(query, term) {
  const what = term.name ?? (term.weight < 0 ? "less like this" : "more like this");
  const weight = make("input", {
    type: "number", step: "0.25", min: "-10", max: "10", value: term.weight, "aria-label": `Weight of ${what}`,
  });
  weight.addEventListener("change", () => {
    const value = Number(weight.value);
    query.weigh(term, Number.isFinite(value) ? Math.max(-10, Math.min(10, value)) : 1);
  });
  const remove = make("button", { type: "button", textContent: "✕", "aria-label": `Remove ${what}` });
  remove.addEventListener("click", () => {
    query.remove(term);
    by("text").focus();
  });
  const image = make("img", { src: term.content ?? thumbOf(term.id, 160), alt: "", width: 38, height: 38 });
  const shown = make("span", { className: "what", textContent: what });
  return make("li", { className: term.weight < 0 ? "less" : "more" }, image, shown, weight, remove);
}
