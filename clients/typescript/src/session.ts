/** An annotator's session: an image, then prompts, over one stream after another. */

import { Backoff, EagerBackoff, FIRST_DELAY_MS, FIRST_IMAGE_DELAY_MS } from "./backoff.js";
import { fromCall, fromStatus, isNotHeld, isUnreachable, noAnswer, PolywandError } from "./errors.js";
import { InteractRequestSchema, type InteractResponse } from "./gen/polywand/v1/annotation_pb.js";
import { type AcceptedImages, messageOf, type Sendable } from "./images.js";
import { Ledger, type NewPrompt, type OpenPrompt } from "./ledger.js";
import { Link } from "./link.js";
import { encode, type Transport } from "./transport.js";
import type { CallOptions, ImageInfo, ImageInput, Prompt, Segmentation, Timing, Update, ValueRange } from "./types.js";
import * as wire from "./wire.js";

/** The image that `setImage` waits for. */
interface NextImage {
  /** Undefined while it is read. */
  image?: Sendable;
  resolve: (info: ImageInfo) => void;
  reject: (error: PolywandError) => void;
  refusal?: PolywandError;
}

/**
 * A session with a current image; made by `client.open`. It outlives its server: when the stream breaks or the server
 * drains, it opens another one, sends the image's digest (the bytes only where the server does not hold it) and the
 * newest prompt of each object, within their timeouts.
 */
export class Session implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #accepted: AcceptedImages;
  readonly #metadata: Record<string, string> | undefined;
  readonly #onClose: () => void;
  readonly #ledger: Ledger<Link>;
  readonly #links = new Set<Link>();
  readonly #unread = new Map<string, Update>(); // newest wins: at most one of each object
  readonly #imageDelay = new Backoff(FIRST_IMAGE_DELAY_MS);
  readonly #restoreDelay = new EagerBackoff(FIRST_IMAGE_DELAY_MS);
  readonly #linkDelay = new EagerBackoff(FIRST_DELAY_MS);
  #wake: () => void = () => {};
  #link: Link | undefined; // the one for what comes next
  #image: Sendable | undefined;
  #info: ImageInfo | undefined;
  #next: NextImage | undefined;
  #imageDue = 0;
  #linkDue = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed: PolywandError | undefined;

  /** For `client.open`. */
  constructor(
    transport: Transport,
    accepted: AcceptedImages,
    metadata: Record<string, string> | undefined,
    onClose: () => void,
  ) {
    this.#transport = transport;
    this.#accepted = accepted;
    this.#metadata = metadata;
    this.#onClose = onClose;
    this.#ledger = new Ledger(transport.target, (update) => this.#publish(update));
  }

  /** The current image: its size after EXIF orientation, and its digest. */
  get image(): ImageInfo {
    if (this.#info === undefined) throw new Error("the session has no image yet");
    return this.#info;
  }

  /**
   * Make an image the current one. The objects of the last one are forgotten, and their open prompts reject with the
   * reason "SUPERSEDED". If this fails, the last image stays.
   */
  setImage(image: ImageInput, options: CallOptions & { valueRange?: ValueRange } = {}): Promise<ImageInfo> {
    const { timeoutMs = this.#transport.timeoutMs, signal, valueRange } = options;
    return new Promise((resolve, reject) => {
      this.#checkOpen();
      signal?.throwIfAborted();
      const stop = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
      };
      const next: NextImage = {
        resolve: (info) => {
          stop();
          resolve(info);
        },
        reject: (error) => {
          stop();
          reject(error);
        },
      };
      const drop = (error: PolywandError): void => this.#dropImage(next, error);
      const timer = setTimeout(() => drop(next.refusal ?? noAnswer(this.#transport.target, timeoutMs)), timeoutMs);
      const abort = (): void => {
        reject(signal?.reason);
        drop(superseded());
      };
      signal?.addEventListener("abort", abort, { once: true });
      this.#supersede();
      this.#next = next;
      this.#imageDue = 0;
      this.#imageDelay.reset();
      this.#accepted.read(image, valueRange).then((read) => {
        next.image = read;
        this.#pump();
      }, drop);
    });
  }

  /**
   * Ask for the outline of one object. Resolves with the answer to this prompt, or to a newer one of the same object
   * that overtook it; rejects with `IncompletePrompt` or another `PolywandError`. While the server is full, or away, the
   * prompt is sent again until its timeout.
   */
  prompt(prompt: Prompt, options: CallOptions = {}): Promise<Segmentation> {
    const { timeoutMs = this.#transport.timeoutMs, signal } = options;
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const settle = (answer: Segmentation | PolywandError): void => {
        signal?.removeEventListener("abort", abort);
        if (answer instanceof Error) reject(answer);
        else resolve(answer);
      };
      const open = this.#add({ message: wire.promptMessage(prompt), settle, timeoutMs });
      const abort = (): void => {
        this.#ledger.abandon(open);
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
    });
  }

  /**
   * Ask for the outline of one object without waiting: the answer comes through `updates`. Returns the prompt's
   * sequence. A prompt that still waits to be sent is replaced by a newer one of its object.
   */
  send(prompt: Prompt, options: Pick<CallOptions, "timeoutMs"> = {}): number {
    const { timeoutMs = this.#transport.timeoutMs } = options;
    return this.#add({ message: wire.promptMessage(prompt), timeoutMs }).sequence;
  }

  /**
   * Every answer about objects of the current image, to `send` and to `prompt`, as it comes. Of answers that come faster
   * than they are read, the newest of each object is kept. Ends with the session. For one reader.
   */
  async *updates(): AsyncGenerator<Update, void, void> {
    for (;;) {
      for (const [objectId, update] of this.#unread) {
        this.#unread.delete(objectId);
        yield update;
      }
      if (this.#closed !== undefined) return;
      if (this.#unread.size === 0) await new Promise<void>((wake) => (this.#wake = wake));
    }
  }

  /** Free an object that is finished. Its open prompts reject with the reason "FORGOTTEN". */
  forget(objectId = ""): Promise<void> {
    return this.#forget({ case: "objectId", value: objectId }, objectId);
  }

  /** Free all objects of the image. */
  forgetAll(): Promise<void> {
    return this.#forget({ case: "all", value: true });
  }

  /** End the session. Prompts without an answer reject with the reason "SESSION_CLOSED". */
  async close(): Promise<void> {
    if (this.#closed !== undefined) return;
    this.#closed = new PolywandError("CANCELLED", "This session is closed.", { reason: "SESSION_CLOSED" });
    clearTimeout(this.#timer);
    this.#failAll(this.#closed);
    this.#unread.clear();
    this.#onClose();
    this.#wake();
    await Promise.all([...this.#links].map((link) => link.end()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #checkOpen(): void {
    this.#transport.closed.throwIfAborted();
    if (this.#closed !== undefined) throw this.#closed;
  }

  #add(prompt: NewPrompt): OpenPrompt<Link> {
    this.#checkOpen();
    encode(InteractRequestSchema, { payload: { case: "prompt", value: prompt.message } }); // throws the caller's errors
    const open = this.#ledger.add(prompt);
    this.#pump();
    return open;
  }

  async #forget(objects: { case: "objectId"; value: string } | { case: "all"; value: true }, objectId?: string) {
    this.#checkOpen();
    this.#ledger.fail(new PolywandError("CANCELLED", "The object was forgotten.", { reason: "FORGOTTEN" }), objectId);
    if (objectId === undefined) this.#unread.clear();
    else this.#unread.delete(objectId);
    const link = this.#link;
    if (link?.stream === undefined || link.image === undefined || link.image !== this.#image) return; // the stream has none
    await new Promise<void>((resolve, reject) => {
      const settle = (refusal?: PolywandError): void => (refusal === undefined ? resolve() : reject(refusal));
      link.forgets.set(link.write({ case: "forget", value: { objects } }), settle);
    });
  }

  #publish(update: Update): void {
    this.#unread.delete(update.objectId);
    this.#unread.set(update.objectId, update);
    this.#wake();
  }

  /** Send what has to be sent now, and come back for what is due later. */
  #pump(): void {
    clearTimeout(this.#timer);
    const image = this.#next === undefined ? this.#image : this.#next.image;
    const unsent = this.#ledger.unsent();
    if (this.#closed !== undefined || image === undefined) return;
    if (this.#next === undefined && unsent.length === 0) return;
    if (this.#link === undefined) {
      if (this.#linkDue > Date.now()) return this.#pumpAt(this.#linkDue);
      this.#link = this.#connect();
    }
    const link = this.#link;
    if (link.stream === undefined || link.isFull) return;
    if (link.image === image && link.asked === undefined) this.#sendPrompts(link, unsent);
    else this.#sendImage(link, image);
  }

  #sendImage(link: Link, image: Sendable): void {
    if (link.asked?.image === image) return;
    if (this.#imageDue > Date.now()) return this.#pumpAt(this.#imageDue);
    const message = messageOf(image, link.notHeld !== image);
    link.asked = { image, as: link.write({ case: "image", value: message }) };
  }

  #sendPrompts(link: Link, unsent: OpenPrompt<Link>[]): void {
    const now = Date.now();
    for (const prompt of unsent) {
      if (prompt.due <= now && !link.isFull) {
        prompt.sent = { on: link, as: link.write({ case: "prompt", value: prompt.message }) };
      }
    }
    const later = unsent.filter(({ due }) => due > now);
    if (later.length > 0) this.#pumpAt(Math.min(...later.map(({ due }) => due)));
  }

  #pumpAt(due: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#pump(), Math.max(1, due - Date.now()));
  }

  #connect(): Link {
    const link = new Link();
    this.#links.add(link);
    this.#transport.metadata(this.#metadata).then(
      (metadata) => {
        if (this.#closed !== undefined) return;
        const stream = this.#transport.interact(metadata);
        link.stream = stream;
        stream.on("data", (reply: InteractResponse) => this.#read(link, reply));
        stream.on("drain", () => {
          link.isFull = false;
          this.#pump();
        });
        stream.on("error", () => {}); // its status says why
        stream.on("status", (status) => {
          const error = Object.assign(new Error(status.details), status);
          this.#ended(link, fromCall(error, this.#transport.target));
        });
        this.#pump();
      },
      (cause: unknown) => this.#ended(link, new PolywandError("UNAUTHENTICATED", "There is no token.", { cause })),
    );
    return link;
  }

  #read(link: Link, { sequence, result, timing }: InteractResponse): void {
    this.#transport.reached = true;
    switch (result.case) {
      case "image":
        this.#readImage(link, sequence, wire.readImage(result.value));
        break;
      case "segmentation":
        this.#answer(link, sequence, wire.readSegmentation(result.value), wire.readTiming(timing));
        break;
      case "forgotten":
        link.settleForget(sequence);
        break;
      case "draining":
        this.#leave(link);
        break;
      case "heartbeat":
      case undefined: // of a newer contract: it answers nothing
        break;
      case "error":
        this.#readError(link, sequence, fromStatus(result.value));
        break;
      default:
        this.#answer(link, sequence, wire.readError(result), wire.readTiming(timing));
    }
    this.#pump();
  }

  #answer(link: Link, sequence: number, answer: Segmentation | PolywandError, timing: Timing): void {
    this.#restoreDelay.reset();
    this.#linkDelay.reset();
    this.#ledger.answer(link, sequence, answer, timing);
  }

  #readImage(link: Link, sequence: number, info: ImageInfo): void {
    if (link.asked?.as !== sequence) return;
    const { image } = link.asked;
    link.asked = undefined;
    link.image = image;
    this.#accepted.add(image, info.digest);
    this.#imageDelay.reset();
    if (this.#next?.image === image) {
      const next = this.#next;
      this.#next = undefined;
      this.#image = image;
      this.#info = info;
      this.#unread.clear();
      next.resolve(info);
    }
  }

  #readError(link: Link, sequence: number, error: PolywandError): void {
    if (link.settleForget(sequence, error)) return;
    if (link.asked?.as === sequence) return this.#refuseImage(link, link.asked.image, error);
    if (error.reason === "IMAGE_GIVEN_UP") {
      // Prompts that were sent before the image was sent again are sent again too.
      if (link.asked === undefined) {
        link.image = undefined;
        this.#imageDue = Date.now() + this.#restoreDelay.nextMs();
      }
      this.#ledger.resend(error, ({ on, as }) => on === link && as === sequence);
    } else if (error.temporary) this.#ledger.postpone(link, sequence, error);
    else this.#ledger.answer(link, sequence, error);
  }

  #refuseImage(link: Link, image: Sendable, error: PolywandError): void {
    link.asked = undefined;
    if (isNotHeld(error) && image.whole !== undefined && link.notHeld !== image) {
      link.notHeld = image;
    } else if (error.temporary) {
      this.#imageDue = Date.now() + this.#imageDelay.nextMs(error.retryAfterMs);
      this.#refuse(error);
    } else if (this.#next?.image === image) {
      this.#dropImage(this.#next, error);
    } else if (this.#image === image) this.#ledger.fail(error);
  }

  /** Use another stream for what comes next. What was sent on this one is still answered on it. */
  #leave(link: Link): void {
    if (this.#link !== link) return;
    this.#link = undefined;
    this.#linkDue = Date.now() + this.#linkDelay.nextMs();
    link.stream?.end();
  }

  #ended(link: Link, error: PolywandError): void {
    this.#links.delete(link);
    for (const sequence of link.forgets.keys()) link.settleForget(sequence); // its objects are gone with it
    this.#ledger.resend(error, ({ on }) => on === link);
    if (this.#closed !== undefined || this.#link !== link) return this.#pump();
    this.#link = undefined;
    if (this.#transport.closed.aborted) return this.#failAll(this.#transport.closed.reason);
    if (!isLost(error) || (isUnreachable(error) && !this.#transport.reached)) return this.#failAll(error);
    this.#linkDue = Date.now() + this.#linkDelay.nextMs(error.retryAfterMs);
    this.#refuse(error);
    this.#pump();
  }

  /** Note why nothing is answered yet, for the time when it is over. */
  #refuse(error: PolywandError): void {
    this.#ledger.refuse(error);
    if (this.#next !== undefined) this.#next.refusal = error;
  }

  #failAll(error: PolywandError): void {
    this.#next?.reject(error);
    this.#next = undefined;
    this.#ledger.fail(error);
  }

  /** A newer image comes: what waits for another one is not answered any more. */
  #supersede(): void {
    this.#next?.reject(superseded());
    this.#next = undefined;
    this.#ledger.fail(superseded());
    this.#unread.clear();
  }

  /** The new image failed, and so do the prompts that wait for it. */
  #dropImage(next: NextImage, error: PolywandError): void {
    next.reject(error);
    if (this.#next !== next) return;
    this.#next = undefined;
    this.#ledger.fail(error);
  }
}

/** Whether another stream may do better. */
function isLost(error: PolywandError): boolean {
  const codes = ["INTERNAL", "UNKNOWN", "CANCELLED"]; // of a stream that was cut, if no server gave a reason
  return error.temporary || (error.reason === "" && codes.includes(error.code));
}

function superseded(): PolywandError {
  return new PolywandError("CANCELLED", "A newer image replaced the image of this request.", { reason: "SUPERSEDED" });
}
