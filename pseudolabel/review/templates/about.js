// What the page says of an image: name, size, doubt, warnings; and what can be drawn and looked at in it.

import { $, make, named, option, url } from "./common.js";

export function showCounts(counts) {
  const decided = counts.total - counts.none;
  $("progress").max = Math.max(1, counts.total);
  $("progress").value = decided;
  $("counts").textContent = `${decided} of ${counts.total} decided: ${counts.accept} accepted, ${counts.reject} rejected, `
    + `${counts.skip} skipped; ${counts.corrected} corrected`;
}

export function showAbout(item, at, total) {
  $("title").replaceChildren(named(item.shown));
  $("place").textContent = `${at + 1} of ${total} · ${item.full[1]} x ${item.full[0]} px`;
  $("reasons").textContent = `doubt ${item.doubt.toFixed(2)}${item.reasons.length ? `: ${item.reasons.join(", ")}` : ""}`;
  $("warnings").textContent = item.warnings.length ? `⚠ ${item.warnings.join("; ")}` : "";
  $("problems").replaceChildren(...item.problems.map((text) => make("li", {}, named(text))));
}

/** Offer the classes to draw, an image's own first; the one chosen before stays if the image has it. */
export function offerClasses(item, store) {
  const undecided = store.undecided.id;
  const before = $("draw").value, own = new Set(item.labels.map((label) => label.id));
  const others = store.classes.filter((one) => !own.has(one.id));
  $("draw").replaceChildren(...[...item.labels, ...others].map((one) => option(one.id, one.name)), option(undecided, "undecided"));
  const stays = before !== "" && (own.has(Number(before)) || Number(before) === undecided);
  $("draw").value = stays ? before : $("draw").options[0].value;
}

/** Offer what can be looked at; `onHeat` is told the view of a soft map's button. */
export function offerViews(item, store, onHeat) {
  const views = [["mask", "mask"], ["image", "image alone"], ...item.soft.map((id) => [`heat ${id}`, `soft map: ${store.classes[id].name}`])];
  if (store.predictions) views.push(["predictions", "the network's mask"]);
  $("view").replaceChildren(...views.map(([value, text]) => option(value, text)));
  $("heats").replaceChildren(...item.soft.map((id) => {
    const picture = make("img", { alt: "", loading: "lazy", src: url("/heat", { id: item.id, label: id, v: item.machine.slice(0, 12) }) });
    const button = make("button", { "aria-pressed": "false", "data-view": `heat ${id}` }, picture, named(store.classes[id].name));
    button.addEventListener("click", () => onHeat(`heat ${id}`));
    return button;
  }));
}
