// What the server is asked. Every function throws a Trouble whose message a person can read.

export class Trouble extends Error {
  /** `image`: position of the unusable picture, counted from 0; `reason`: the cause. Undefined for other errors. */
  constructor(message, status, { image, reason } = {}) {
    super(message);
    Object.assign(this, { status, image, reason });
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server cannot be reached. Is it still running?", 0);
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Trouble(body?.detail ?? `The server answered ${answer.status}.`, answer.status, body ?? {});
  return body;
}

const post = (path, body, signal) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const info = () => ask("/v1/info");
export const ready = () => ask("/readyz");
export const search = (body, signal) => post("/v1/search", body, signal);
export const classify = (body, signal) => post("/v1/classify", body, signal);
export const picture = (id) => ask(`/v1/images/${id}`);
export const thumbOf = (id, px = 320) => `/v1/images/${id}/thumb?px=${px}`;
export const fileOf = (id) => `/v1/images/${id}/file`;
export const heatOf = (id, text) => `/v1/images/${id}/heat?text=${encodeURIComponent(text)}`;

/** A file's content in base64, with its kind in front. */
export function contentOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Trouble("cannot be read", 0));
    reader.readAsDataURL(file);
  });
}
