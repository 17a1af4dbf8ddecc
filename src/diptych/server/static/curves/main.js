// Which runs there are, and the chosen ones over each other; asked again while a run goes on.

import { chart, short, smoothed } from "./chart.js";

const LOOK_AGAIN_MS = 10_000;
const COLOURS = ["#c2410c", "#2563a8", "#2f7d44", "#8b3fa8", "#a17600", "#b0305c", "#0f7d83", "#6b6354"];
const FIRST = ["loss", "val_loss", "val_image_to_text_r1", "val_text_to_image_r1", "image_to_text", "text_to_image", "pairs_per_s", "lr"];
const ALWAYS_ROUGH = /^(val_|lr$|ln_n$)/;

const by = (id) => document.getElementById(id);
let runs = [];
let chosen = null;
let drawn = "";

function cell(tag, content, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(content ?? "");
  return element;
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.detail ?? `The server answered ${answer.status}.`);
  return answer.json();
}

const colourOf = (name) => COLOURS[runs.findIndex((run) => run.name === name) % COLOURS.length];

async function look() {
  try {
    runs = await ask("/api/runs");
    chosen ??= new Set(runs.slice(-4).map((run) => run.name));
    const told = await Promise.all(runs.filter((run) => chosen.has(run.name)).map((run) => ask(`/api/run?name=${encodeURIComponent(run.name)}`)));
    by("state").textContent = "";
    const now = JSON.stringify([runs, [...chosen], told.map((run) => run.step), by("axis").value, by("smooth").checked]);
    if (now === drawn) return;
    drawn = now;
    list();
    curves(told);
    differences(told);
    samples(told);
  } catch (error) {
    by("state").textContent = error instanceof TypeError ? "The server cannot be reached. Is it still running?" : error.message;
  }
}

function list() {
  const head = document.createElement("tr");
  head.append(...["Run", "Recipe", "Data", "Steps", "Minutes", "Loss", ""].map((name) => cell("th", name, { scope: "col" })));
  by("runs").replaceChildren(head, ...runs.map(line));
}

function line(run) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.has(run.name) });
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(run.name);
    else chosen.delete(run.name);
    look();
  });
  const key = cell("span", "", { className: "key" });
  key.style.background = colourOf(run.name);
  const label = cell("label", "");
  label.append(box, " ", key, ` ${run.name}`);
  const row = document.createElement("tr");
  const number = (value, digits) => cell("td", value?.toFixed(digits) ?? "", { className: "number" });
  row.append(
    cell("th", label, { scope: "row" }), cell("td", run.recipe), cell("td", run.data), number(run.step, 0),
    number(run.elapsed_s && run.elapsed_s / 60, 1), number(run.loss, 3), cell("td", run.unreadable ? `unreadable: ${run.unreadable}` : run.is_done ? "done" : "no bundle yet"),
  );
  return row;
}

function curves(told) {
  const known = [...new Set(told.flatMap((run) => Object.keys(run.curves)))];
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  known.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  const axis = Number(by("axis").value);
  by("curves").replaceChildren(...known.map((figure) => {
    const lines = told.filter((run) => run.curves[figure]?.length).map((run) => {
      const points = run.curves[figure];
      const isSmooth = by("smooth").checked && !ALWAYS_ROUGH.test(figure) && points.length > 24;
      return { name: run.name, colour: colourOf(run.name), points: isSmooth ? smoothed(points) : points };
    });
    return chart(figure, lines, axis);
  }));
  if (!known.length) by("curves").replaceChildren(cell("p", "Choose a run above.", { className: "soft" }));
}

function differences(told) {
  const known = [...new Set(told.flatMap((run) => Object.keys(run.settings)))];
  const shown = (value) => (value === undefined ? "" : typeof value === "number" ? short(value) : JSON.stringify(value));
  const differing = known.filter((key) => new Set(told.map((run) => JSON.stringify(run.settings[key]))).size > 1);
  if (!differing.length) {
    const row = document.createElement("tr");
    row.append(cell("td", told.length < 2 ? "Choose two runs or more." : "None: they are the same.", { className: "soft" }));
    by("differences").replaceChildren(row);
    return;
  }
  const head = document.createElement("tr");
  head.append(cell("th", "Setting", { scope: "col" }), ...told.map((run) => cell("th", run.name, { scope: "col" })));
  by("differences").replaceChildren(head, ...differing.map((key) => {
    const row = document.createElement("tr");
    row.append(cell("th", key, { scope: "row" }), ...told.map((run) => cell("td", shown(run.settings[key]))));
    return row;
  }));
}

function samples(told) {
  const shown = told.filter((run) => run.pictures.includes("samples.png")).map((run) => {
    const source = `/api/picture?name=${encodeURIComponent(run.name)}&file=samples.png&step=${run.step}`;
    const image = Object.assign(document.createElement("img"), { src: source, alt: `Validation pictures of ${run.name} with captions`, loading: "lazy" });
    const figure = document.createElement("figure");
    figure.append(cell("figcaption", run.name), image);
    return figure;
  });
  by("samples").replaceChildren(...(shown.length ? shown : [cell("p", "None of the chosen runs has any yet.", { className: "soft" })]));
}

by("axis").addEventListener("change", look);
by("smooth").addEventListener("change", look);
await look();
setInterval(look, LOOK_AGAIN_MS);
