/** The prompts of one image that have no answer yet: newest wins, per object. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { Backoff, FIRST_DELAY_MS } from "./backoff.js";
import { noAnswer, type PolywandError } from "./errors.js";
import type { PromptSchema } from "./gen/polywand/v1/annotation_pb.js";
import type { Segmentation, Timing, Update } from "./types.js";

/** A prompt without an answer. `L` is a stream. */
export interface OpenPrompt<L> {
  readonly objectId: string;
  /** As its caller knows it. */
  readonly sequence: number;
  readonly message: MessageInitShape<typeof PromptSchema>;
  readonly deadline: number;
  readonly backoff: Backoff;
  /** The stream on which it was sent, and its sequence there; undefined: it has to be sent (again). */
  sent?: { on: L; as: number } | undefined;
  /** When to send it, by `Date.now()`; 0 is at once. */
  due: number;
  /** Why it was not answered yet. */
  refusal?: PolywandError;
  /** Absent if its caller does not wait for it. */
  settle?: ((answer: Segmentation | PolywandError) => void) | undefined;
  /** How many older prompts it has replaced already. */
  replaced: number;
  timer?: NodeJS.Timeout;
}

/** What a caller adds. */
export type NewPrompt = Pick<OpenPrompt<never>, "message" | "settle"> & { timeoutMs: number };

export class Ledger<L> {
  readonly #open = new Map<string, OpenPrompt<L>[]>(); // of each object, the oldest first
  readonly #publish: (update: Update) => void;
  readonly #target: string;
  #sequence = 0;

  /** publish: takes the answers; at most one for each object and reply. */
  constructor(target: string, publish: (update: Update) => void) {
    this.#target = target;
    this.#publish = publish;
  }

  /** Add a prompt; when its timeout is over, it is answered with why it was not answered before. */
  add({ message, settle, timeoutMs }: NewPrompt): OpenPrompt<L> {
    const objectId = message.objectId ?? "";
    const deadline = Date.now() + timeoutMs;
    const backoff = new Backoff(FIRST_DELAY_MS);
    const prompt: OpenPrompt<L> = {
      objectId,
      sequence: ++this.#sequence,
      message,
      deadline,
      backoff,
      due: 0,
      settle,
      replaced: 0,
    };
    prompt.timer = setTimeout(() => this.#expire(prompt, timeoutMs), timeoutMs);
    this.#open.set(objectId, [...(this.#open.get(objectId) ?? []), prompt]);
    const before = this.#open.get(objectId)?.at(-2);
    if (before !== undefined && before.sent === undefined && before.settle === undefined) this.#replace(before);
    return prompt;
  }

  /** The newest prompt of each object, if it has to be sent. */
  unsent(): OpenPrompt<L>[] {
    return this.#newest().filter((prompt) => prompt.sent === undefined);
  }

  /** Close the prompts that a reply answers: all of the object up to the one that it names. */
  answer(on: L, as: number, answer: Segmentation | PolywandError, timing?: Timing): void {
    const covered = this.#covered(on, as);
    if (covered.length > 0) this.#answer(covered, answer, timing);
  }

  /** Send a prompt again after a while, unless a newer one of its object is open, or its time is over before. */
  postpone(on: L, as: number, refusal: PolywandError): void {
    const prompt = this.#covered(on, as).at(-1);
    if (prompt === undefined || this.#open.get(prompt.objectId)?.at(-1) !== prompt) return;
    prompt.due = Date.now() + prompt.backoff.nextMs(refusal.retryAfterMs);
    if (prompt.due >= prompt.deadline) this.answer(on, as, refusal);
    else this.resend(refusal, (sent) => sent.on === on && sent.as === as);
  }

  /** Let prompts be sent again: their stream, or its image, was lost. */
  resend(refusal: PolywandError | undefined, which: (sent: { on: L; as: number }) => boolean): void {
    for (const prompt of [...this.#open.values()].flat()) {
      if (prompt.sent === undefined || !which(prompt.sent)) continue;
      prompt.sent = undefined;
      if (refusal !== undefined) prompt.refusal = refusal;
    }
  }

  /** Note at all open prompts why they have no answer yet. */
  refuse(refusal: PolywandError): void {
    for (const prompt of [...this.#open.values()].flat()) prompt.refusal = refusal;
  }

  /** Answer all open prompts, or those of one object, with an error. */
  fail(error: PolywandError, objectId?: string): void {
    const objects = objectId === undefined ? [...this.#open.keys()] : [objectId];
    for (const object of objects) {
      const open = this.#open.get(object);
      if (open !== undefined) this.#answer([...open], error);
    }
  }

  /** Forget a prompt whose caller does not wait for it any more. What was sent is not taken back. */
  abandon(prompt: OpenPrompt<L>): void {
    this.#close(prompt);
  }

  #expire(prompt: OpenPrompt<L>, timeoutMs: number): void {
    const error = prompt.refusal ?? noAnswer(this.#target, timeoutMs);
    if (this.#open.get(prompt.objectId)?.at(-1) === prompt) return this.#answer([prompt], error);
    this.#replace(prompt); // the newer one is answered, or expires
    prompt.settle?.(error);
  }

  /** Take a prompt out, for the next one of its object. */
  #replace(prompt: OpenPrompt<L>): void {
    const open = this.#open.get(prompt.objectId) ?? [];
    const next = open[open.indexOf(prompt) + 1];
    if (next !== undefined) next.replaced += prompt.replaced + 1;
    this.#close(prompt);
  }

  #newest(): OpenPrompt<L>[] {
    return [...this.#open.values()].flatMap((open) => open.slice(-1));
  }

  #covered(on: L, as: number): OpenPrompt<L>[] {
    for (const open of this.#open.values()) {
      const last = open.findIndex(({ sent }) => sent !== undefined && sent.on === on && sent.as === as);
      if (last >= 0) return open.slice(0, last + 1);
    }
    return []; // a late reply
  }

  #answer(prompts: OpenPrompt<L>[], answer: Segmentation | PolywandError, timing?: Timing): void {
    const { objectId, sequence } = prompts.at(-1) as OpenPrompt<L>;
    const result = answer instanceof Error ? { error: answer } : { segmentation: answer };
    for (const prompt of prompts) {
      this.#close(prompt);
      prompt.settle?.(answer);
    }
    const skipped = prompts.reduce((sum, { replaced }) => sum + replaced, prompts.length - 1);
    this.#publish({ objectId, sequence, skipped, ...result, ...(timing && { timing }) });
  }

  #close(prompt: OpenPrompt<L>): void {
    clearTimeout(prompt.timer);
    const left = this.#open.get(prompt.objectId)?.filter((other) => other !== prompt) ?? [];
    if (left.length > 0) this.#open.set(prompt.objectId, left);
    else this.#open.delete(prompt.objectId);
  }
}
