// Where the two answers part for the first time. No DOM.

/**
 * {common, at: {base, dynamo}}: how many tokens both answers begin with, and in each the place of the first token that
 * differs, {pass, token}; null where they have not parted, or are not to be compared.
 */
function forkOf({ base, dynamo }) {
  if (!areComparable({ base, dynamo }) || isBlind(base) || isBlind(dynamo)) return null;
  const [left, right] = [base, dynamo].map(({ passes }) =>
    passes.flatMap((step) => step.ids.map((id, token) => ({ id, place: { pass: step.pass, token } }))),
  );
  const common = left.findIndex(({ id }, i) => id !== right[i]?.id);
  if (common < 0 || common >= right.length) return null;
  return { common, at: { base: left[common].place, dynamo: right[common].place } };
}
