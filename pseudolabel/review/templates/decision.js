// What was decided about an image: its state in words, and its labels, each of which may be marked wrong.

import { $, chip, make, named } from "./common.js";

export const STATES = { accept: "✓ Accepted", reject: "✗ Rejected", skip: "– Skipped", none: "Not decided" };
const LOOKS = { accept: "accept", reject: "reject" };

/** Show an item's review; `onWrong` is told the position of a label that is ticked or unticked. */
export function showDecision(item, onWrong) {
  const review = item.review;
  const by = review.lines ? ` by ${review.who || "somebody"}, ${review.when.slice(0, 16).replace("T", " ")} UTC` : "";
  const notes = [];
  if (review.stale) notes.push("Stale: the mask has changed since.");
  if (review.correction) notes.push(review.settings ? "The corrected mask was retuned." : "The corrected mask counts.");
  if (review.outdated) notes.push("The machine's mask has changed since it was corrected.");
  $("state").replaceChildren(make("b", { class: LOOKS[review.decision] || "later" }, STATES[review.decision]), by);
  if (notes.length) $("state").append(make("br"), make("span", { class: "warn" }, notes.join(" ")));
  $("labels").replaceChildren(...item.labels.map((label, index) => labelRow(label, index, review.wrong.includes(label.id), onWrong)));
}

function labelRow(label, index, wrong, onWrong) {
  const box = make("input", { type: "checkbox", checked: wrong });
  box.addEventListener("change", () => onWrong(index));
  const key = index < 9 ? make("kbd", {}, String(index + 1)) : "";
  const share = label.share === null ? "" : `${(100 * label.share).toFixed(1)} %`;
  return make("li", { class: wrong ? "wrong" : "" }, make("label", {}, box, key, make("span", { class: "called" }, chip(label), named(label.name)),
    make("span", {}, wrong ? "wrong" : ""), make("span", { class: "share" }, share)));
}
