// The models that can be chosen, one radio button each; what this machine cannot hold is greyed and says why.
//
// props.value is one JSON object: {chosen, rows: [{name, title, detail, badge, reason}]}; a row with a reason cannot be
// chosen. "pick" tells which one was. Names come from folders and hubs, and reach the page as textContent only.

const rows = element.querySelector(".dm-picker-rows");
const group = `dm-picker-${Math.random().toString(36).slice(2)}`;

function onValue() {
  const shown = typeof props.value === "string" && props.value ? JSON.parse(props.value) : { rows: [] };
  const focused = rows.querySelector(":focus")?.value;
  rows.replaceChildren(...shown.rows.map((row) => rowOf(row, shown.chosen)));
  [...rows.querySelectorAll("input")].find((input) => input.value === focused)?.focus();
}

function rowOf(row, chosen) {
  const label = document.createElement("label");
  label.className = "dm-picker-row";
  const input = document.createElement("input");
  input.type = "radio";
  input.name = group;
  input.value = row.name;
  input.checked = row.name === chosen;
  input.disabled = Boolean(row.reason);
  input.addEventListener("change", () => trigger("pick", { name: row.name }));
  label.append(input, worded("dm-picker-title", row.title), worded("dm-picker-detail", row.reason || row.detail));
  if (row.badge) label.append(worded("dm-picker-badge", row.badge));
  return label;
}

function worded(name, text) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  return span;
}

watch("value", onValue);
onValue();
