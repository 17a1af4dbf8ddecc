// The pictures that were found: a page at first, more as one scrolls.

import * as api from "./api.js";
import { by, make, plural } from "./dom.js";
import { hideNotice, notice } from "./notice.js";
import { addUnused } from "./unused.js";

const PAGE = 40;
const LARGEST_PAGE = 200; // The server's limit.

export class Grid {
  #query;
  #on; // { gone, opened, counted }: called when the server fails, when a hit is opened, and with the number of hits.
  #asking = new AbortController();
  #coming = null; // Promise of the next page during its request.
  #isAsking = false;
  #num = 0; // Number of results; `hits` also contains unfolded similar pictures.
  hits = []; // In the shown order.
  hasMore = false;

  constructor(query, on) {
    this.#query = query;
    this.#on = on;
    by("more").addEventListener("click", () => this.more());
    const watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && this.more(), { rootMargin: "600px" });
    watch.observe(by("more"));
    by("grid").addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Search again for at least this many hits, and abort a running search. */
  async show(num = PAGE) {
    this.#asking.abort();
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    this.#isAsking = true;
    this.hasMore = false;
    if (this.#query.isEmpty) {
      this.#isAsking = false;
      this.#clear();
      return;
    }
    by("grid").setAttribute("aria-busy", "true");
    const began = performance.now();
    try {
      const found = await api.search(this.#query.body(0, Math.min(Math.max(num, PAGE), LARGEST_PAGE)), signal);
      this.hits = [];
      this.#num = 0;
      by("grid").replaceChildren();
      this.#add(found);
      this.#tell(Math.round(performance.now() - began));
      while (this.#num < num && this.hasMore) await this.#next(signal);
    } catch (error) {
      if (error.name !== "AbortError") this.#trouble(error);
    } finally {
      if (!signal.aborted) {
        this.#isAsking = false;
        by("grid").setAttribute("aria-busy", "false");
      }
    }
  }

  /** Load the next page, if there is one and no request is running. Resolves when it is loaded. */
  async more() {
    if (this.#coming) return this.#coming;
    if (!this.hasMore || this.#isAsking) return undefined;
    const { signal } = this.#asking;
    this.#coming = this.#next(signal).catch((error) => {
      if (error.name === "AbortError") return;
      by("status").textContent = error.message;
      this.hasMore = false;
    });
    try {
      return await this.#coming;
    } finally {
      this.#coming = null;
    }
  }

  async #next(signal) {
    this.#add(await api.search(this.#query.body(this.#num, PAGE), signal));
    this.#tell();
  }

  #add(found) {
    hideNotice();
    this.hits.push(...found.results);
    this.#num += found.results.length;
    by("grid").append(...found.results.map((hit) => this.#tile(hit)));
    this.hasMore = found.has_more;
    by("more").hidden = !found.has_more;
    this.#on.counted(this.#num);
    if (this.hits.length === 0) {
      notice("Nothing found", this.#query.where ? "The filter lets no picture through." : "The index holds no pictures yet.");
    }
  }

  #tile(hit) {
    const name = hit.captions[0] ?? hit.name;
    const image = make("img", { src: api.thumbOf(hit.id), alt: name, loading: "lazy", decoding: "async" });
    const open = make("button", { className: "open", type: "button" }, image);
    open.addEventListener("click", () => this.#on.opened(this.hits.indexOf(hit)));
    const tile = make("li", { className: "tile" }, open);
    image.addEventListener("error", () => {
      tile.classList.add("gone");
      image.remove();
      open.setAttribute("aria-label", `${name}: no picture any more`);
    });
    const score = make("span", { className: "score", textContent: hit.score.toFixed(3), title: "Cosine with what is looked for" });
    tile.append(make("div", { className: "file", textContent: hit.name, title: hit.path ?? hit.name }));
    tile.append(make("div", { className: "under" }, score, this.#likes(hit, name, 1), this.#likes(hit, name, -1)));
    if (hit.similar?.length) tile.append(this.#unfolder(hit, name));
    return tile;
  }

  #unfolder(hit, name) {
    const button = make("button", {
      type: "button", className: "similar", textContent: `+${hit.similar.length} similar`, "aria-expanded": "false",
      "aria-label": `${plural(hit.similar.length, "picture")} similar to ${name}`,
    });
    button.addEventListener("click", () => this.unfold(hit, button.getAttribute("aria-expanded") === "false"));
    return button;
  }

  /** Show or hide the folded pictures of a hit behind it. */
  unfold(hit, is = true) {
    const at = this.hits.indexOf(hit);
    const tile = by("grid").children[at];
    const button = tile.querySelector(".similar");
    if (is === (button.getAttribute("aria-expanded") === "true")) return;
    button.setAttribute("aria-expanded", String(is));
    const num = hit.similar.length;
    if (is) {
      this.hits.splice(at + 1, 0, ...hit.similar);
      const members = hit.similar.map((one) => this.#tile(one));
      for (const member of members) member.classList.add("member");
      tile.after(...members);
    } else {
      this.hits.splice(at + 1, num);
      for (const member of [...by("grid").children].slice(at + 1, at + 1 + num)) member.remove();
    }
  }

  /** Index of a picture among the hits, unfolded if necessary; -1 if it is not among them. */
  find(id) {
    const folded = this.hits.find((hit) => hit.similar?.some((one) => one.id === id));
    if (folded && !this.hits.some((hit) => hit.id === id)) this.unfold(folded);
    return this.hits.findIndex((hit) => hit.id === id);
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
    const parts = [`${plural(this.#num, "picture")}${this.hasMore ? " so far" : ""}`];
    const numSimilar = this.hits.reduce((sum, hit) => sum + (hit.similar?.length ?? 0), 0);
    if (numSimilar) parts.push(`${plural(numSimilar, "near-equal one")} folded`);
    if (ms !== undefined) parts.push(`in ${ms} ms`);
    by("status").textContent = parts.join(", ");
  }

  #clear() {
    by("grid").replaceChildren();
    by("grid").setAttribute("aria-busy", "false");
    by("status").textContent = "";
    by("more").hidden = true;
    this.hits = [];
    this.#num = 0;
    notice("Search by words or by pictures", "Type what you are looking for; or drop, paste or choose a picture to find others like it.", {
      examples: ["a dog", "people in the street", "something red"],
      use: (text) => this.#query.set({ text }),
    });
  }

  #trouble(error) {
    by("status").textContent = "";
    by("more").hidden = true;
    const bad = this.#query.terms.filter((term) => term.content)[error.image];
    if (bad) {
      addUnused(bad.name, error.reason);
      this.#query.remove(bad);
      return;
    }
    if (error.status === 422) {
      by("status").textContent = error.message;
      return;
    }
    by("grid").replaceChildren();
    notice("That did not work", error.message, { retry: () => this.show() });
    this.#on.gone();
  }
}
