// The queue: a list of all images that fit the filters, of which only the visible rows exist; pictures come lazily.

import { $, make, named, option, readJson, send, tried, url } from "./common.js";

const ROW_PX = 52, SPARE = 8, BATCH = 120;
const WORDS = { accept: "✓ accepted", reject: "✗ rejected", skip: "– skipped", none: "" };
const LOOKS = { accept: "accept", reject: "reject", skip: "later", none: "" };

/** What the filters above the list ask for. */
export const filters = () => Object.fromEntries(["label", "warning", "decision", "order", "text"].map((name) => [name, $(`f-${name}`).value]));

/** Offer the classes and warnings that a store has. */
export function offerFilters(store) {
  $("f-label").append(...store.labels.map(([id, number]) => option(id, `${store.classes[id].name} (${number})`)));
  $("f-warning").append(...store.warnings.map(([kind, number]) => option(kind, `${kind} (${number})`)));
}

export function listenToFilters(ask) {
  for (const id of ["f-label", "f-warning", "f-decision", "f-order"]) $(id).addEventListener("change", ask);
  let typing = 0;
  $("f-text").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(ask, 250); });
  $("f-refresh").addEventListener("click", ask);
}

export class Queue {
  constructor(onOpen, onCounts) {
    this.ids = [];
    this.known = new Map();
    this.at = -1;
    this.onOpen = onOpen;
    this.onCounts = onCounts;
    this.list = $("list");
    this.list.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.list);
    $("rows").addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.onOpen(Number(row.dataset.at));
    });
  }

  /** Ask for the images that fit; returns whether there are any. */
  async ask(query) {
    const given = Object.fromEntries(Object.entries(query).filter(([, value]) => value !== ""));
    const found = await tried(() => readJson("/api/queue", given));
    if (!found) return false;
    this.ids = found.ids;
    this.known.clear();
    this.at = -1;
    this.onCounts(found.counts);
    $("rows").style.height = `${this.ids.length * ROW_PX}px`;
    $("q-count").textContent = this.ids.length === 1 ? "1 image" : `${this.ids.length.toLocaleString("en")} images`;
    this.list.scrollTop = 0;
    this.draw();
    return this.ids.length > 0;
  }

  select(at) {
    this.at = at;
    const top = at * ROW_PX, { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + ROW_PX > scrollTop + clientHeight) this.list.scrollTop = top + ROW_PX - clientHeight;
    this.draw();
  }

  /** Take up what a decision has made of a row. */
  update(row) {
    this.known.set(row.id, row);
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_PX) - SPARE);
    const last = Math.min(this.ids.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW_PX) + SPARE);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this._row(at));
    $("rows").replaceChildren(...rows);
    if (this.at >= 0) this.list.setAttribute("aria-activedescendant", `row-${this.at}`);
    this._fetch(this.ids.slice(first, last).filter((id) => !this.known.has(id)));
  }

  _row(at) {
    const id = this.ids[at], row = this.known.get(id);
    const node = make("div", { class: "row", role: "option", id: `row-${at}`, "data-at": String(at),
      "aria-selected": String(at === this.at), "aria-setsize": String(this.ids.length), "aria-posinset": String(at + 1) });
    node.style.top = `${at * ROW_PX}px`;
    const picture = make("img", { alt: "", loading: "lazy", decoding: "async", width: "58", height: "44" });
    if (row) picture.src = url("/thumb", { id, v: row.version });
    const text = make("span", {}, make("span", { class: "name" }, named(row ? row.shown : id)));
    if (row) {
      const parts = [`doubt ${row.doubt.toFixed(2)}`];
      if (row.corrected) parts.push("corrected");
      if (row.wrong) parts.push("label wrong");
      if (row.stale) parts.push("stale");
      const what = make("span", { class: "what" });
      if (row.decision !== "none") what.append(make("span", { class: LOOKS[row.decision] }, WORDS[row.decision]), " · ");
      what.append(parts.join(" · "));
      text.append(what);
    }
    node.append(picture, text);
    return node;
  }

  async _fetch(ids) {
    if (!ids.length || this.asking) return;
    this.asking = true;
    const rows = await tried(async () => (await send("/api/rows", { ids: ids.slice(0, BATCH) })).json());
    this.asking = false;
    if (!rows || !rows.length) return;
    for (const row of rows) this.known.set(row.id, row);
    this.draw();
  }
}
