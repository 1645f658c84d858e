// What passes that are over would have emitted at another threshold, as far as their own joints tell: nothing is decoded.

/**
 * How many passes would emit fewer or more tokens, each after the same text. orders: what each would emit, null where
 * it built no joint; changes: 1 for more, -1 for fewer.
 */
function whatIf(passes, threshold) {
  const tries = passes.map((step) => triesOf(step));
  const orders = tries.map((each) => (each.length ? decisionAt(each, threshold).order : null));
  const changes = orders.map((order, i) => (order === null ? 0 : Math.sign(order - emittedOrder(passes[i]))));
  const count = (sign) => changes.filter((change) => change === sign).length;
  return { orders, changes, fewer: count(-1), more: count(1) };
}

/** Whether a run can be asked: its threshold is another, and its passes compared joints with it. */
function canAsk(passes, threshold, asked) {
  return asked !== null && Math.abs(asked - threshold) > 1e-9 && passes.length > 0 && !passes.some(isGrown);
}
