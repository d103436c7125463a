// Which key presses are the page's: not those of fields, sliders and buttons, which keep their own.

import { $ } from "./common.js";

/** Return the key that a press means, or null where it belongs to a field, a slider, a button or the browser. */
export function pageKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || $("help").open || $("masks").hidden) return null;
  const target = event.target, kind = target.type || "";
  if (target.matches("input[type=text], input[type=search], textarea, select")) {
    if (event.key === "Escape") target.blur();
    return null;
  }
  if (kind === "range" && /^(Arrow|Home|End|Page)/.test(event.key)) return null;
  if ((target.matches("button") || kind === "checkbox") && (event.key === " " || event.key === "Enter")) return null;
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

/** Return the tool that an arrow leads to from a tool's button; null where the press is none of that. */
export function nextTool(event) {
  if (!event.target.matches("[data-tool]") || !event.key.startsWith("Arrow")) return null;
  const tools = [...document.querySelectorAll("[data-tool]")], step = /Right|Down/.test(event.key) ? 1 : -1;
  return tools[(tools.indexOf(event.target) + step + tools.length) % tools.length];
}
