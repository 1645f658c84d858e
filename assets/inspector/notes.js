// What stands under the three grids: the orders that were tried against their thresholds, the third token's
// candidates, rejected drafts. Texts reach the page as textContent and in no other way.

/** Reuses the list's items, as most passes need as many as the one before. */
function drawItems(list, entries, build, draw) {
  while (list.children.length > entries.length) list.lastElementChild.remove();
  while (list.children.length < entries.length) list.append(build());
  entries.forEach((entry, i) => draw(list.children[i], entry));
}

function itemOf(...tags) {
  return () => {
    const item = document.createElement("li");
    item.append(...tags.map((tag) => document.createElement(tag)));
    return item;
  };
}

/** What the grids are of, and what their marks mean; pass: null at rest. */
function drawKeys(part, last, pass) {
  const exact = pass !== null && isExact(pass);
  nameStage(last, exact ? "Drafts" : "Threshold");
  say(part("about"), exact ? draftsForNextInWords(pass) : "");
  say(part("gone-key"), exact ? "left out" : "removed");
  say(part("picked-key"), exact ? "drafted" : "sampled");
}

function drawLadder(list, pass, joint, threshold) {
  list.parentElement.hidden = isGrown(pass);
  drawItems(list, ladderOf(pass, joint, threshold), itemOf("b", "i", "span", "em"), (item, rung) => {
    const [label, meter, values, verdict] = item.children;
    item.dataset.verdict = rung.verdict;
    item.classList.toggle("measured", rung.best !== null);
    item.classList.toggle("barred", rung.bar !== null);
    item.style.setProperty("--best", rung.best ?? 0);
    item.style.setProperty("--bar", rung.bar ?? 0);
    meter.className = `size-${rung.order}`;
    say(label, plural(rung.order, "token"));
    say(values, rungInWords(rung));
    say(verdict, rung.verdict);
  });
}

function drawThird(root, pass, joint) {
  const third = joint?.third ?? [];
  root.hidden = third.length === 0;
  if (root.hidden) return;
  say(root.querySelector("h3"), thirdTitle(pass, joint));
  const picked = joint.picked.length > 2 && !isExact(pass) ? pass.text[2] : null;
  drawItems(root.querySelector("ol"), third, itemOf("code", "i", "span"), (item, [text, share]) => {
    const [label, , value] = item.children;
    item.classList.toggle("picked", text === picked);
    item.style.setProperty("--share", share);
    say(label, visible(text));
    say(value, percent(share));
  });
}

/** The chunk that the pass emitted, as the panes draw it. */
function drawEmitted(node, pass) {
  node.hidden = false;
  node.className = `dm-chunk dm-emitted size-${pass.ids.length}${pass.backoffs?.length ? " backed-off" : ""}`;
  node.replaceChildren(
    ...pass.text.map((text) => {
      const token = document.createElement("span");
      token.className = "dm-token";
      token.textContent = visible(text);
      return token;
    }),
  );
}

/** Exact mode: drafts of the pass before that were turned down, struck through. */
function drawDrafts(node, pass) {
  const rejected = pass.rejected ?? [];
  node.hidden = rejected.length === 0;
  const struck = rejected.map((text) => {
    const draft = document.createElement("s");
    draft.textContent = visible(text);
    return draft;
  });
  node.replaceChildren("Drafted by the pass before and rejected: ", ...struck.flatMap((draft) => [draft, " "]));
}
