// A line chart as SVG: several runs over each other.

const WIDTH = 420;
const HEIGHT = 220;
const LEFT = 52;
const BOTTOM = 22;
const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

export const short = (value, digits = 4) => {
  const size = Math.abs(value);
  if (value !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
};

/** A running mean whose window grows with the number of points. */
export function smoothed(points) {
  const keep = Math.max(0, 1 - 12 / points.length);
  let mean = null;
  return points.map(([step, seconds, value]) => {
    mean = mean === null ? value : keep * mean + (1 - keep) * value;
    return [step, seconds, mean];
  });
}

/** lines: { name, colour, points }, a point being (step, seconds, value); axis: 0 for steps, 1 for seconds. */
export function chart(title, lines, axis) {
  const all = lines.flatMap((line) => line.points);
  const xs = all.map((point) => point[axis]);
  const ys = all.map((point) => point[2]);
  const [x0, x1] = spread(Math.min(...xs), Math.max(...xs));
  const [y0, y1] = spread(Math.min(...ys), Math.max(...ys));
  const toX = (x) => LEFT + ((x - x0) / (x1 - x0)) * (WIDTH - LEFT - 8);
  const toY = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - 8);
  const last = lines.map((line) => `${line.name}: ${short(line.points.at(-1)[2])}`).join(", ");
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. At the end ${last}.` });
  for (const part of [0, 0.5, 1]) {
    const y = y0 + part * (y1 - y0);
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - 8, y1: toY(y), y2: toY(y) }));
    svg.append(draw("text", { x: LEFT - 5, y: toY(y) + 4, "text-anchor": "end" }, short(y, 3)));
    const x = x0 + part * (x1 - x0);
    svg.append(draw("text", { x: toX(x), y: HEIGHT - 6, "text-anchor": ["start", "middle", "end"][2 * part] }, short(x)));
  }
  for (const { colour, points } of lines) {
    const path = points.map((point, number) => `${number ? "L" : "M"}${toX(point[axis]).toFixed(1)} ${toY(point[2]).toFixed(1)}`).join("");
    const line = draw("path", { d: path });
    line.style.stroke = colour;
    svg.append(line);
  }
  return follow(svg, title, lines, axis, { x0, x1, toX });
}

/** Under the pointer, the values there. */
function follow(svg, title, lines, axis, { x0, x1, toX }) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const values = document.createElement("span");
  caption.append(title, values);
  const cursor = draw("line", { class: "cursor", y1: 8, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - 8);
    const x = x0 + Math.min(1, Math.max(0, share)) * (x1 - x0);
    const nearest = lines.map((line) => line.points.reduce((a, b) => (Math.abs(b[axis] - x) < Math.abs(a[axis] - x) ? b : a)));
    values.textContent = nearest.map((point) => short(point[2])).join(" · ");
    cursor.setAttribute("x1", toX(x));
    cursor.setAttribute("x2", toX(x));
    cursor.setAttribute("visibility", "visible");
  });
  svg.addEventListener("pointerleave", () => {
    values.textContent = "";
    cursor.setAttribute("visibility", "hidden");
  });
  figure.append(caption, svg);
  return figure;
}

function spread(low, high) {
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}
