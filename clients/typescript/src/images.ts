/** Images as messages: by their bytes, and by their digest. */

import { webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { PolywandError } from "./errors.js";
import { type ImageSchema, PixelFormat } from "./gen/polywand/v1/annotation_pb.js";
import type { ImageInput, ValueRange } from "./types.js";

export type ImageMessage = MessageInitShape<typeof ImageSchema>;

/** Of larger images, the server is first asked for the digest: the question costs less than the bytes. */
const DIGEST_FIRST_BYTES = 64 << 10;

/** Messages of one image: where the server does not hold the one that is named by the first, send the next. */
export type Sendable = readonly [ImageMessage, ...ImageMessage[]];

/** Read an image, and compute its digest. Rejects with `PolywandError`. */
export async function sendable(image: ImageInput, valueRange?: ValueRange): Promise<Sendable> {
  const by = (source: ImageMessage["source"]): ImageMessage => ({ source, valueRange });
  if (typeof image === "string" || image instanceof URL) image = await read(image);
  if (image instanceof Uint8Array) return named(by({ case: "encoded", value: image }), image);
  if ("digest" in image) return [by({ case: "digest", value: image.digest })];
  const { data, width, height, format } = image;
  const whole = by({ case: "raw", value: { data, width, height, format: PixelFormat[format] } });
  return named(whole, Buffer.concat([Buffer.from(`${format} ${width} ${height}\n`), data]));

  async function named(whole: ImageMessage, content: Uint8Array): Promise<Sendable> {
    if (content.length < DIGEST_FIRST_BYTES) return [whole];
    // In a thread: a large image would hold the event loop.
    const digest = await webcrypto.subtle.digest("SHA-256", content as Uint8Array<ArrayBuffer>);
    return [by({ case: "digest", value: new Uint8Array(digest) }), whole];
  }
}

async function read(path: string | URL): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new PolywandError("INVALID_ARGUMENT", `The image cannot be read: ${(cause as Error).message}`, {
      violations: [{ field: "image", description: "no readable file" }],
      cause,
    });
  }
}
