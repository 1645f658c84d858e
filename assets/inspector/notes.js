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

function drawLadder(list, pass, joint, threshold) {
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
  const [first, second] = joint.picked.length >= 2 ? pass.text : ["the best", "pair"];
  say(root.querySelector("h3"), `Third token, given “${visible(first)}${visible(second)}”`);
  const picked = joint.picked.length > 2 ? pass.text[2] : null;
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

/** Exact mode: what was drafted, and which drafts the check turned down. */
function drawDrafts(node, pass) {
  const rejected = pass.rejected ?? [];
  const drafted = pass.drafted ?? [];
  node.hidden = rejected.length + drafted.length === 0;
  const parts = drafted.length ? [`Exact mode: ${plural(drafted.length, "token")} drafted. `] : [];
  if (rejected.length) {
    parts.push("Rejected when checked: ");
    for (const text of rejected) {
      const struck = document.createElement("s");
      struck.textContent = visible(text);
      parts.push(struck, " ");
    }
  }
  node.replaceChildren(...parts);
}
