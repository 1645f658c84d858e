// The passes that this page knows, by run: as they came by, and what was missed asked of the server in one call.
// `ask` is `server.get_passes`: [run, [index, ..]] to a list of JSON strings, null where a pass is no longer stored.

const KEPT_RUNS = 8;
const MOST_PASSES_ASKED = 512; // the server answers no longer list

class PassCache {
  constructor(ask) {
    this.ask = ask;
    this.runs = new Map(); // in order of their last use
  }

  /** {passes: index -> value, gone, total, asking} of a run; the run that was used least recently makes room. */
  of(run) {
    const known = this.runs.get(run) ?? { passes: new Map(), gone: new Set(), total: 0, asking: null };
    this.runs.delete(run);
    this.runs.set(run, known);
    if (this.runs.size > KEPT_RUNS) this.runs.delete(this.runs.keys().next().value);
    return known;
  }

  put(value) {
    const known = this.of(value.run);
    known.passes.set(value.pass.pass, value);
    known.total = Math.max(known.total, value.pass.pass + 1);
  }

  /** A pass that is here already, else undefined. */
  known(run, index) {
    return this.of(run).passes.get(index);
  }

  /** A pass as {run, pass, joint}, null where nobody has it any more. Everything else that is missing comes along. */
  async find(run, index) {
    const known = this.of(run);
    known.total = Math.max(known.total, index + 1);
    if (!known.passes.has(index) && !known.gone.has(index)) await this.complete(run);
    return known.passes.get(index) ?? null;
  }

  /** Asks for what is missing of a run; a second request waits for the first, and asks only for what it left. */
  complete(run) {
    const known = this.of(run);
    const request = (known.asking ?? Promise.resolve()).then(() => this.askMissing(run, known));
    known.asking = request.catch(() => {}); // a lost answer is asked for again when it is wanted
    return known.asking;
  }

  async askMissing(run, known) {
    const missing = [];
    for (let i = 0; i < known.total; i++) if (!known.passes.has(i) && !known.gone.has(i)) missing.push(i);
    while (missing.length) {
      const indices = missing.splice(0, MOST_PASSES_ASKED);
      const answers = await this.ask([run, indices]);
      answers.forEach((text, i) => {
        if (text) known.passes.set(indices[i], JSON.parse(text));
        else known.gone.add(indices[i]);
      });
    }
  }
}
