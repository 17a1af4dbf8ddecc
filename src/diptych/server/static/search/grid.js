// The pictures that were found: a page at first, more as one scrolls.

import * as api from "./api.js";
import { by, make, plural } from "./dom.js";
import { openDetail } from "./detail.js";
import { hideNotice, notice } from "./notice.js";

const PAGE = 40;

export class Grid {
  #query;
  #gone; // Told when the server does not answer as it should.
  #asking = new AbortController();
  #hits = [];
  #hasMore = false;
  #isAsking = false;

  constructor(query, gone) {
    this.#query = query;
    this.#gone = gone;
    by("more").addEventListener("click", () => this.#next());
    const watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && this.#next(), { rootMargin: "600px" });
    watch.observe(by("more"));
    by("grid").addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Ask anew; what was asked before is given up. */
  async show() {
    this.#asking.abort();
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    this.#isAsking = true;
    this.#hasMore = false;
    if (this.#query.isEmpty) {
      this.#isAsking = false;
      this.#clear();
      return;
    }
    by("grid").setAttribute("aria-busy", "true");
    const began = performance.now();
    try {
      const found = await api.search(this.#query.body(0, PAGE), signal);
      this.#hits = [];
      by("grid").replaceChildren();
      this.#add(found);
      this.#tell(Math.round(performance.now() - began));
    } catch (error) {
      if (error.name !== "AbortError") this.#trouble(error);
    } finally {
      if (!signal.aborted) {
        this.#isAsking = false;
        by("grid").setAttribute("aria-busy", "false");
      }
    }
  }

  async #next() {
    if (!this.#hasMore || this.#isAsking) return;
    this.#isAsking = true;
    const { signal } = this.#asking;
    try {
      this.#add(await api.search(this.#query.body(this.#hits.length, PAGE), signal));
      this.#tell();
    } catch (error) {
      if (error.name !== "AbortError") {
        by("status").textContent = error.message;
        this.#hasMore = false;
      }
    } finally {
      if (!signal.aborted) this.#isAsking = false;
    }
  }

  #add(found) {
    hideNotice();
    const first = this.#hits.length;
    this.#hits.push(...found.results);
    by("grid").append(...found.results.map((hit, number) => this.#tile(hit, first + number)));
    this.#hasMore = found.has_more;
    by("more").hidden = !found.has_more;
    if (this.#hits.length === 0) {
      notice("Nothing found", this.#query.where ? "The filter lets no picture through." : "The index holds no pictures yet.");
    }
  }

  #tile(hit, number) {
    const name = hit.captions[0] ?? hit.name;
    const image = make("img", { src: api.thumbOf(hit.id), alt: name, loading: "lazy", decoding: "async" });
    const open = make("button", { className: "open", type: "button" }, image);
    open.addEventListener("click", () => openDetail(this.#hits, number, this.#query));
    const tile = make("li", { className: "tile" }, open);
    image.addEventListener("error", () => {
      tile.classList.add("gone");
      image.remove();
      open.setAttribute("aria-label", `${name}: no picture any more`);
    });
    const score = make("span", { className: "score", textContent: hit.score.toFixed(3), title: "Cosine with what is looked for" });
    tile.append(make("div", { className: "under" }, score, this.#likes(hit, name, 1), this.#likes(hit, name, -1)));
    return tile;
  }

  #likes(hit, name, weight) {
    const is = Math.sign(this.#query.weightOf(hit.id)) === weight;
    const button = make("button", {
      type: "button", className: weight > 0 ? "plus" : "minus", textContent: weight > 0 ? "+" : "−",
      title: weight > 0 ? "More like this" : "Less like this",
      "aria-label": `${weight > 0 ? "More" : "Less"} like ${name}`, "aria-pressed": String(is),
    });
    button.addEventListener("click", () => this.#query.like(hit.id, weight * (weight > 0 ? 1 : 0.5)));
    return button;
  }

  /** Arrow keys go from picture to picture, Home and End to the first and last. */
  #walk(event) {
    const tiles = [...by("grid").querySelectorAll(".open")];
    const here = tiles.indexOf(document.activeElement);
    if (here < 0) return;
    const columns = getComputedStyle(by("grid")).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -here, End: tiles.length - 1 - here }[event.key];
    const there = tiles[here + (step ?? NaN)];
    if (!there) return;
    event.preventDefault();
    there.focus();
  }

  #tell(ms) {
    const shown = `${plural(this.#hits.length, "picture")}${this.#hasMore ? " so far" : ""}`;
    by("status").textContent = ms === undefined ? shown : `${shown}, in ${ms} ms`;
  }

  #clear() {
    by("grid").replaceChildren();
    by("grid").setAttribute("aria-busy", "false");
    by("status").textContent = "";
    by("more").hidden = true;
    this.#hits = [];
    notice("Search by words or by pictures", "Type what you are looking for; or drop, paste or choose a picture to find others like it.", {
      examples: ["a dog", "people in the street", "something red"],
      use: (text) => this.#query.set({ text }),
    });
  }

  #trouble(error) {
    by("status").textContent = "";
    by("more").hidden = true;
    if (error.status === 422) {
      by("status").textContent = error.message;
      return;
    }
    by("grid").replaceChildren();
    notice("That did not work", error.message, { retry: () => this.show() });
    this.#gone();
  }
}
