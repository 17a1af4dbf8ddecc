// Pictures that are dropped on the page, pasted, or chosen from a dialog.

import { by } from "./dom.js";

const isPicture = (file) => file.type.startsWith("image/");

export function startDrop(take) {
  let depth = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth += 1;
    by("dropping").hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    by("dropping").hidden = depth === 0;
  });
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    by("dropping").hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    give([...event.dataTransfer.files], take);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter(isPicture);
    if (files.length) {
      event.preventDefault();
      give(files, take);
    }
  });
  for (const id of ["picture-file", "class-files"]) {
    by(id).addEventListener("change", () => {
      give([...by(id).files], take);
      by(id).value = "";
    });
  }
}

function give(files, take) {
  take(files.filter(isPicture), files.length);
}
