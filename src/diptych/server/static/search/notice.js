// What stands where the pictures would be: nothing yet, nothing found, or trouble.

import { by, make } from "./dom.js";

export function notice(title, text, { examples = [], use, retry } = {}) {
  const parts = [make("h2", { textContent: title }), make("p", { className: "soft", textContent: text })];
  if (examples.length) {
    const buttons = examples.map((example) => {
      const button = make("button", { type: "button", textContent: example });
      button.addEventListener("click", () => use(example));
      return button;
    });
    parts.push(make("div", { className: "examples" }, ...buttons));
  }
  if (retry) {
    const again = make("button", { type: "button", className: "main", textContent: "Try again" });
    again.addEventListener("click", retry);
    parts.push(again);
  }
  by("notice").className = retry ? "bad" : "";
  by("notice").replaceChildren(...parts);
  by("notice").hidden = false;
}

export function hideNotice() {
  by("notice").hidden = true;
}
