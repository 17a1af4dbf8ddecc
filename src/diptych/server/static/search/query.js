// What is looked for: a text, a filter, and terms (pictures of the index, or dropped ones). It lives in the address, so that a
// search can be shared; of dropped pictures only this page knows.

const WHOLE = 1;
export const MAX_TERMS = 31; // The server accepts 32, and the text is one of them.

export class Query {
  text = "";
  where = "";
  isGrouped = false; // Whether near-equal pictures are folded into the best hit.
  terms = []; // { id } or { content, name }, each with a weight
  #changed;

  constructor(changed) {
    this.#changed = changed;
  }

  get isEmpty() {
    return !this.text.trim() && this.terms.length === 0;
  }

  /** `isTyping`: the user is typing, so more changes follow. */
  set(values, { isTyping = false } = {}) {
    Object.assign(this, values);
    this.#changed(isTyping);
  }

  /** Set the search from an address, with its terms if they are known. This does not count as a change. */
  load(search, terms) {
    const told = Query.read(search);
    const { text, where, isGrouped } = told;
    Object.assign(this, { text, where, isGrouped, terms: (terms ?? told.terms).map((term) => ({ ...term })) });
  }

  /** Number of further terms that the server accepts. */
  get numFree() {
    return MAX_TERMS - this.terms.length;
  }

  /** More, or less, like a picture of the index; the same again takes it back. */
  like(id, weight) {
    const known = this.terms.find((term) => term.id === id);
    if (known && Math.sign(known.weight) === Math.sign(weight)) this.terms = this.terms.filter((term) => term !== known);
    else if (known) known.weight = weight;
    else this.terms.push({ id, weight });
    this.#changed();
  }

  weightOf(id) {
    return this.terms.find((term) => term.id === id)?.weight ?? 0;
  }

  /** Add pictures that are not in the index. */
  drop(pictures) {
    this.terms.push(...pictures.map(({ content, name }) => ({ content, name, weight: WHOLE })));
    this.#changed();
  }

  remove(term) {
    this.terms = this.terms.filter((one) => one !== term);
    this.#changed();
  }

  weigh(term, weight) {
    term.weight = weight;
    this.#changed();
  }

  body(offset, limit) {
    const terms = this.terms.map(({ id, content, weight }) => (id ? { id, weight } : { image: content, weight }));
    const body = { terms, offset, limit };
    if (this.text.trim()) body.text = this.text.trim();
    if (this.where.trim()) body.where = this.where.trim();
    if (this.isGrouped) body.group_similar = true;
    return body;
  }

  /** The search as URL parameters, with the id of the open picture. */
  toString(picture) {
    const told = new URLSearchParams();
    if (this.text.trim()) told.set("q", this.text.trim());
    if (this.where.trim()) told.set("where", this.where.trim());
    if (this.isGrouped) told.set("group", "1");
    for (const { id, weight } of this.terms) if (id) told.append("like", `${id}*${weight}`);
    if (picture) told.set("picture", picture);
    return told.toString();
  }

  /** From an address; what in it makes no sense is left out. */
  static read(search, changed) {
    const told = new URLSearchParams(search);
    const query = new Query(changed ?? (() => {}));
    query.text = told.get("q") ?? "";
    query.where = told.get("where") ?? "";
    query.isGrouped = told.get("group") === "1";
    for (const one of told.getAll("like").slice(0, 30)) {
      const [id, weight] = one.split("*");
      if (/^[0-9a-f]{1,128}$/.test(id) && Number.isFinite(Number(weight))) query.terms.push({ id, weight: Number(weight) });
    }
    return query;
  }
}
