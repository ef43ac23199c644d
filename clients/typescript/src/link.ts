/** One stream of a session, and what its server has. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { PolywandError } from "./errors.js";
import { InteractRequestSchema } from "./gen/polywand/v1/annotation_pb.js";
import type { Sendable } from "./images.js";
import { encode, type Stream } from "./transport.js";

type Payload = MessageInitShape<typeof InteractRequestSchema>["payload"];

const CLOSE_GRACE_MS = 1000; // for the server to end the stream; then it is cancelled

export class Link {
  /** Undefined until its metadata is there. */
  stream: Stream | undefined;
  /** The image on which its server works. */
  image: Sendable | undefined;
  /** The image that was sent last and is not answered. */
  asked: { image: Sendable; as: number } | undefined;
  /** The image that its server does not hold. */
  notHeld: Sendable | undefined;
  /** Forgets without an answer, by sequence. */
  readonly forgets = new Map<number, (refusal?: PolywandError) => void>();
  /** gRPC takes no more at the moment. */
  isFull = false;
  #sequence = 0;

  /** Send a request, and return its sequence. */
  write(payload: Payload): number {
    const sequence = ++this.#sequence;
    this.isFull = this.stream?.write(encode(InteractRequestSchema, { sequence, payload })) === false;
    return sequence;
  }

  /** Settle a forget; return whether the sequence was of one. */
  settleForget(sequence: number, refusal?: PolywandError): boolean {
    this.forgets.get(sequence)?.(refusal);
    return this.forgets.delete(sequence);
  }

  /** Wait until the stream has ended. */
  async end(): Promise<void> {
    const { stream } = this;
    if (stream === undefined) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => stream.cancel(), CLOSE_GRACE_MS);
      stream.on("status", () => {
        clearTimeout(timer);
        resolve();
      });
      stream.end();
    });
  }
}
