// What was decided on a page, kept until the server has it: the outbox survives the page and the server.
//
//   put -> localStorage -> POST, in order, again until it is taken -> told(answer)
//                            `-- 400: refused for good, said, and out of the way of the rest

const AGAIN_MS = 1500, BATCH = 100;

export function load(key) { try { return JSON.parse(localStorage.getItem(key)) || []; } catch { return []; } }
export function store(key, value) { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* private window: kept while it is open */ } }

export const post = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export async function ask(address, options) {
  const answer = await fetch(address, options);
  const document = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(document.error), { status: answer.status });
  return document;
}

export class Outbox {
  // key: where entries are kept; address: where they go; command: what printed the page's address; changed: called when
  // there is something to paint; told: called with what the server answers. An entry has an `event`, a UUID.
  constructor({ key, address, command, changed, told = () => {} }) {
    Object.assign(this, { key, address, command, changed, told, waiting: load(key), sending: false, refused: "" });
  }

  get away() { return Boolean(this.refused || (this.waiting.length && !this.sending)); }

  // What is wrong, and how much is not saved; empty when all is.
  get said() {
    const num = this.waiting.length, waiting = num ? `${num} not yet saved${this.sending ? "" : ": the server is away"}` : "";
    return [this.refused, waiting].filter(Boolean).join(" ");
  }

  put(entry) {
    if (this.refused.startsWith("Refused")) this.refused = "";
    this.waiting.push({ event: crypto.randomUUID(), ...entry });
    store(this.key, this.waiting);
    this.send();
  }

  async send() {
    if (this.sending || !this.waiting.length) return this.changed();
    this.sending = true;
    this.changed();
    try {
      while (this.waiting.length) await this.sendBatch(this.waiting.slice(0, BATCH));
      if (!this.refused.startsWith("Refused")) this.refused = "";
    } catch (error) {
      setTimeout(() => this.send(), AGAIN_MS);
      if (error.status === 403) this.refused = `This address is no longer valid: open the one '${this.command}' printed.`;
      if (error.status === 503) this.refused = `Not saved: ${error.message}`;
    }
    this.sending = false;
    this.changed();
  }

  async sendBatch(batch) {
    let told = null;
    try {
      told = await ask(this.address, post(batch));
    } catch (error) {
      if (error.status !== 400) throw error;
      if (batch.length > 1) return this.sendBatch(batch.slice(0, 1));
      this.refused = `Refused: ${error.message}`; // what is wrong now will be wrong again: it must not hold up the rest
    }
    const sent = new Set(batch.map((one) => one.event));
    this.waiting = this.waiting.filter((one) => !sent.has(one.event));
    store(this.key, this.waiting);
    if (told) this.told(told);
  }
}
