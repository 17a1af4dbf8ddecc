// Where Back and Forward lead. A place is an entry of the browser's history: its address has the search, the tab and the picture
// that is open. Dropped pictures, the scroll position and the number of hits are in no address; this page keeps them in memory.

export class Places {
  #memory = new Map(); // By number of the place: { terms, search, scroll, shown }.
  #here;

  /** `restore` is called with what is remembered of the place that Back or Forward led to. */
  constructor(restore) {
    history.scrollRestoration = "manual";
    this.#here = history.state?.place ?? newNumber();
    history.replaceState({ ...history.state, place: this.#here }, "");
    addEventListener("popstate", () => {
      this.#here = history.state?.place ?? newNumber(); // An address that was typed, or a link to a part of the page, has none.
      history.replaceState({ ...history.state, place: this.#here }, "");
      restore(this.memory);
    });
    addEventListener("scroll", () => { this.memory.scroll = scrollY; }, { passive: true });
  }

  /** What is remembered of this place; it can be changed. */
  get memory() {
    if (!this.#memory.has(this.#here)) this.#memory.set(this.#here, {});
    return this.#memory.get(this.#here);
  }

  /** Whether Back stays on this page, because a place of it opened this one. */
  get isPushed() {
    return Boolean(history.state?.isPushed);
  }

  push(address, memory) {
    this.#here = newNumber();
    this.#memory.set(this.#here, memory);
    history.pushState({ place: this.#here, isPushed: true }, "", address);
  }

  replace(address, memory = {}) {
    Object.assign(this.memory, memory);
    history.replaceState(history.state, "", address);
  }
}

const newNumber = () => `${Date.now()}-${Math.random()}`;
