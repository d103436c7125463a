// The form for retuning: settings of the mask, and the command that makes the whole store with them.

import { $, copy } from "./common.js";

const RANGES = ["t-threshold", "t-ignore_below"], CONTROLS = [...RANGES, "t-crf", "t-scale", "t-reset"];
const quoted = (text) => (/^[\w./+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** What the form says now. */
export const tuned = () => ({
  threshold: Number($("t-threshold").value), ignore_below: Number($("t-ignore_below").value),
  crf: $("t-crf").checked, scale: Number($("t-scale").value),
});

/** Show settings, or those the form has, as far as they mean something for an image; null: no image yet. */
export function showTuning(store, item, settings = null) {
  if (settings) {
    $("t-threshold").value = settings.threshold;
    $("t-ignore_below").value = settings.ignore_below;
    $("t-crf").checked = settings.crf;
    $("t-scale").value = String(settings.scale);
    if (!$("t-scale").value) $("t-scale").value = "1";
  }
  for (const id of RANGES) $(id).nextElementSibling.textContent = Number($(id).value).toFixed(2);
  for (const id of CONTROLS) $(id).disabled = !item || !item.retunable;
  if (item && !item.fused) $("t-threshold").disabled = true;
  $("t-scale").disabled = $("t-scale").disabled || !$("t-crf").checked;
  $("t-command").textContent = command(store, tuned());
}

function command(store, now) {
  const was = store.settings, flags = [];
  if (now.threshold !== was.threshold) flags.push(`--threshold=${now.threshold}`);
  if (now.crf !== was.crf) flags.push(`--crf.kind=${now.crf ? "densecrf" : "none"}`);
  if (now.crf && now.scale !== was.scale) flags.push(`--crf.scale=${now.scale}`);
  if (now.ignore_below !== was.ignore_below) flags.push(`--ignore_below=${now.ignore_below}`);
  return ["pseudolabel refine", "--store", quoted(store.path), "--output", quoted(`${store.path}_refined`), ...flags].join(" ");
}

/** Call `show` while a slider moves, `retune` when it rests or another control changes, `reset` for the store's own. */
export function listenToTuning(show, retune, reset) {
  let moving = 0;
  for (const id of RANGES) {
    $(id).addEventListener("input", () => { show(); clearTimeout(moving); moving = setTimeout(retune, 60); });
  }
  for (const id of ["t-crf", "t-scale"]) $(id).addEventListener("change", retune);
  $("t-all").addEventListener("change", () => { if ($("t-all").checked) retune(); });
  $("t-reset").addEventListener("click", reset);
  $("t-copy").addEventListener("click", () => copy($("t-command").textContent));
}
