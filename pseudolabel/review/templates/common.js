// What all parts of the review page share: elements, requests, messages. No text from outside ever becomes markup.

export const $ = (id) => document.getElementById(id);

/** Make an element with attributes and children; children that are texts stay texts. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const option = (value, text) => make("option", { value: String(value), dir: "auto" }, text);

/** A name out of a file, so that its direction of writing ends with it. */
export const named = (text) => make("bdi", {}, text);

/** A class's colour beside its name. */
export function chip(entry) {
  const box = make("span", { class: "chip" });
  box.style.backgroundColor = `rgb(${entry.rgb.join(",")})`;
  return box;
}

let clearing = 0;
export function tell(text, bad = false) {
  const toast = $("toast");
  toast.textContent = text;
  toast.classList.toggle("bad", bad);
  clearTimeout(clearing);
  clearing = setTimeout(() => { toast.textContent = ""; }, bad ? 8000 : 2500);
}

async function checked(response) {
  if (response.ok) return response;
  let text = `${response.status} ${response.statusText}`;
  if ((response.headers.get("content-type") || "").includes("json")) text = (await response.json()).error;
  throw new Error(text);
}

const address = (path, query) => `${path}?${new URLSearchParams(query)}`;

export const url = address;

export async function read(path, query = {}, signal) {
  return checked(await fetch(address(path, query), { signal, cache: "no-store" }));
}

export const readJson = async (path, query, signal) => (await read(path, query, signal)).json();

export async function send(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return checked(await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal }));
}

export const bytes = async (response) => new Uint8Array(await (await response).arrayBuffer());

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied.");
  } catch {
    tell("The browser does not allow copying; the command can be selected.", true);
  }
}

/** Run something and show what goes wrong; what was given up on purpose says nothing. */
export async function tried(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message, true);
    return undefined;
  }
}
