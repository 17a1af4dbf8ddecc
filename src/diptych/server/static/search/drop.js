// Pictures that are dropped on the page, pasted, or chosen from a dialog.

import { contentOf } from "./api.js";
import { by } from "./dom.js";

const MAX_MIB = 20;
const SUFFIXES = /\.(heic|heif|avif|jfif|jpe|jp2)$/i; // Browsers may have no type for these, but the server may read them.

/** Calls `take` with pictures ({ content, name }, at most `free()`) and with unused files ({ name, reason }). */
export function startDrop(free, take) {
  let depth = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const give = (files, folders) => read(files, folders, free()).then(({ used, unused }) => take(used, unused));
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
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    const folders = new Set(entries.filter((entry) => entry?.isDirectory).map((entry) => entry.name));
    give([...event.dataTransfer.files], folders);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      give(files, new Set());
    }
  });
  for (const id of ["picture-file", "class-files"]) {
    by(id).addEventListener("change", () => {
      give([...by(id).files], new Set());
      by(id).value = "";
    });
  }
}

async function read(files, folders, free) {
  const used = [], unused = [];
  for (const file of files) {
    const name = file.name || "pasted picture";
    let reason = whyNot(file, folders);
    if (!reason && used.length === free.num) reason = free.reason;
    if (!reason) {
      try {
        used.push({ content: await contentOf(file), name });
      } catch (error) {
        reason = error.message;
      }
    }
    if (reason) unused.push({ name, reason });
  }
  return { used, unused };
}

function whyNot(file, folders) {
  if (folders.has(file.name)) return "a folder; drop the pictures in it";
  if (!file.type.startsWith("image/") && !SUFFIXES.test(file.name)) return `not a picture${file.type && ` (${file.type})`}`;
  if (file.size === 0) return "empty";
  if (file.size > MAX_MIB * 2 ** 20) return `larger than ${MAX_MIB} MiB`;
  return null;
}
