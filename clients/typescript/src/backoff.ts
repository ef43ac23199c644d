/** How long to wait before a request that the server refused for now is sent again. */

export const FIRST_DELAY_MS = 50;
/** Of a request with an image: large messages are not sent many times a second. */
export const FIRST_IMAGE_DELAY_MS = 500;
const MAX_DELAY_MS = 8000; // unless the server asks for more

/** The delays of one request: each twice as long as the last, by a random factor, and never less than the server asks. */
export class Backoff {
  readonly #firstMs: number;
  #lastMs = 0;

  /** firstMs: the shortest delay. */
  constructor(firstMs: number) {
    this.#firstMs = firstMs;
  }

  nextMs(serverMs = 0): number {
    this.#lastMs = Math.min(Math.max(this.#firstMs, 2 * this.#lastMs), MAX_DELAY_MS);
    const delay = Math.max(this.#lastMs, serverMs);
    return delay * (1 + Math.random() / 2); // clients that were refused together do not come back together
  }

  reset(): void {
    this.#lastMs = 0;
  }
}

/** Delays of which the first is none, until `reset`. */
export class EagerBackoff extends Backoff {
  #isFirst = true;

  override nextMs(serverMs = 0): number {
    const isFirst = this.#isFirst && serverMs === 0;
    this.#isFirst = false;
    return isFirst ? 0 : super.nextMs(serverMs);
  }

  override reset(): void {
    this.#isFirst = true;
    super.reset();
  }
}
