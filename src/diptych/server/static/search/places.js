// Back and Forward. A place is an entry of the browser's history. Its address contains the search, the tab and the open picture.
// The page keeps dropped pictures, the scroll position and the number of hits in memory.

export class Places {
  #memory = new Map(); // Number of the place to { terms, search, scroll, shown }.
  #here;

  /** Calls `restore` with the memory of the place that Back or Forward selected. */
  constructor(restore) {
    history.scrollRestoration = "manual";
    this.#here = history.state?.place ?? newNumber();
    history.replaceState({ ...history.state, place: this.#here }, "");
    addEventListener("popstate", () => {
      this.#here = history.state?.place ?? newNumber(); // A typed address and a link within the page have no number.
      history.replaceState({ ...history.state, place: this.#here }, "");
      restore(this.memory);
    });
    addEventListener("scroll", () => { this.memory.scroll = scrollY; }, { passive: true });
  }

  /** The memory of this place; it is mutable. */
  get memory() {
    if (!this.#memory.has(this.#here)) this.#memory.set(this.#here, {});
    return this.#memory.get(this.#here);
  }

  /** Whether Back leads to another place of this page. */
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
