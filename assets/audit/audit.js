// Drift audit: DynaMo's latest answer through the eyes of the base model.
//
// props.value is one JSON object: {run, top_k, tokens: [{text, p, rank}], dynamo, base}, the last two being figures of
// the lanes' own texts; "" before there is an answer. p is at temperature 1 over the whole vocabulary. Texts reach
// the page as textContent and in no other way.

const root = element.querySelector(".dm-audit");
const bus = (window.dynamoBus = window.dynamoBus || new EventTarget());
const part = (name) => root.querySelector(`.dm-audit-${name}`);
const tip = root.querySelector(".dm-tip");
const LISTED = 6; // odd tokens listed at once; the rest opens

let audit = null;
let hiding = 0;

function onValue() {
  const text = typeof props.value === "string" ? props.value : "";
  audit = text ? JSON.parse(text) : null;
  root.dataset.state = audit ? "read" : "empty";
  part("stale").hidden = true;
  hideTip();
  bus.audit = audit; // for the race bar, which may begin later
  bus.dispatchEvent(new Event("audit"));
  if (audit) draw();
}

function draw() {
  const { tokens, top_k: topK } = audit;
  part("text").replaceChildren(...tokens.map((_, at) => tokenOf(at)));
  const odd = tokens.flatMap((token, at) => (isOdd(token, topK) ? [at] : []));
  odd.sort((a, b) => tokens[a].p - tokens[b].p);
  part("finding").textContent = findingInWords(odd.length, tokens.length, topK);
  part("odd").replaceChildren(...odd.slice(0, LISTED).map(itemOf));
  const [summary, more] = part("more").children;
  part("more").hidden = odd.length <= LISTED;
  summary.textContent = `${odd.length - LISTED} more`;
  more.replaceChildren(...odd.slice(LISTED).map(itemOf));
  root.querySelector("tbody").replaceChildren(...figureRows(audit).map(rowOf));
  part("caution").textContent = CAUTION;
}

function tokenOf(at) {
  const token = audit.tokens[at];
  const span = document.createElement("span");
  span.className = "dm-audit-token";
  span.classList.toggle("odd", isOdd(token, audit.top_k));
  span.classList.toggle("silent", !token.text);
  span.style.setProperty("--surprise", surpriseOf(token.p).toFixed(2));
  span.dataset.at = at;
  span.tabIndex = at === 0 ? 0 : -1;
  span.setAttribute("role", "listitem");
  span.setAttribute("aria-label", `${tokenName(audit.tokens, at)}: ${opinionInWords(token)}`);
  // The space before a word is not tinted: it would show at the end of a line.
  const [, space, word] = token.text.match(/^(\s*)(.*)$/s);
  const ink = document.createElement("b");
  ink.append(...bidiNodes(word || (token.text ? "" : at === audit.tokens.length - 1 ? "end" : "…")));
  span.append(space, ink);
  return span;
}

function itemOf(at) {
  const item = document.createElement("li");
  item.textContent = oddInWords(audit.tokens, at, audit.top_k);
  return item;
}

function rowOf([label, meaning, ...values]) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = label;
  if (meaning) {
    const small = document.createElement("small");
    small.textContent = meaning;
    head.append(" ", small);
  }
  row.append(head);
  for (const value of values) row.insertCell().textContent = value;
  return row;
}

// ---- tooltip: on hover and on focus; the pointer may rest on it, Escape closes it

function tokenAt(event) {
  const token = event.target.closest?.(".dm-audit-token");
  return token && root.contains(token) ? token : null;
}

function showTip(token) {
  clearTimeout(hiding);
  const at = Number(token.dataset.at);
  const lines = [tokenName(audit.tokens, at), opinionInWords(audit.tokens[at])].map((text, i) => {
    const line = document.createElement("div");
    line.className = i === 0 ? "dm-tip-title" : "dm-tip-line";
    line.textContent = text;
    return line;
  });
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = root.getBoundingClientRect();
  const anchor = token.getClientRects()[0] ?? token.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(anchor.left - box.left, box.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${anchor.bottom - box.top + 3}px`;
}

function hideTip() {
  clearTimeout(hiding);
  tip.hidden = true;
}

function hideTipSoon() {
  clearTimeout(hiding);
  hiding = setTimeout(hideTip, 140);
}

function onKey(event) {
  const token = tokenAt(event);
  if (event.key === "Escape") hideTip();
  if (!token) return;
  const all = part("text").children;
  const at = Number(token.dataset.at);
  const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  const next = all[Math.max(0, Math.min(all.length - 1, target))];
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

root.addEventListener("mouseover", (event) => {
  const token = tokenAt(event);
  if (token) showTip(token);
  else if (event.target.closest(".dm-tip")) clearTimeout(hiding);
  else hideTipSoon();
});
root.addEventListener("mouseleave", hideTipSoon);
root.addEventListener("focusin", (event) => tokenAt(event) && showTip(tokenAt(event)));
root.addEventListener("focusout", hideTipSoon);
root.addEventListener("keydown", onKey);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});

// A new answer is under way: what stands here is about the one before.
bus.addEventListener("lane", ({ detail }) => {
  if (detail.kind === "dynamo" && detail.run) part("stale").hidden = !audit || audit.run === detail.run;
});
watch("value", onValue);
onValue();
