/** What single calls promise, against the real service. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect as dial } from "node:net";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { createServer } from "node:tls";
import { connect, IncompletePrompt } from "@polywand/client";
import { picture, Relay, rejection, TARGET, unseen, variable } from "./helpers.js";

const client = connect(TARGET);
after(() => client.close());

/** Throws for a value of 64 bits, anywhere in an answer. */
function noBigInts(value: unknown): void {
  JSON.stringify(value);
}

describe("what a server is", () => {
  it("says its version, its limits, and what it reads and writes", async () => {
    const info = await client.serverInfo();
    assert.match(info.version, /^\d+\.\d+\.\d+/);
    assert.equal(info.state, "ready");
    assert(info.limits.segmentPrompts >= 64);
    assert(info.capabilities.imageTypes.includes("image/jpeg"));
    assert.deepEqual([...info.capabilities.pixelFormats].sort(), ["BGR8", "GRAY16", "GRAY8", "RGB8", "RGBA8"]);
    assert.deepEqual([...info.capabilities.outputForms].sort(), ["box", "png", "polygons", "rle"]);
    noBigInts(info);
  });

  it("lists its tools", async () => {
    const models = await client.models();
    const names = models.map(({ name }) => name);
    assert.deepEqual(names, [...names].sort());
    const interactor = models.find(({ name }) => name === "upper_half");
    assert.equal(interactor?.kind, "interactor");
    assert.equal(interactor.state, "ready");
    assert.equal(interactor.interactor?.box, "optional");
    assert.deepEqual(interactor.versions, [{ version: 1, state: "ready", stateMessage: "" }]);
    const detector = models.find(({ name }) => name === "finder");
    assert.equal(detector?.kind, "detector");
    assert.deepEqual(
      detector.labels?.map(({ name }) => name),
      ["thing"],
    );
    noBigInts(models);
  });
});

describe("segment", () => {
  it("answers each prompt in order, with its outline or its own error", async () => {
    const { image, results, timing } = await client.segment(picture(320, 240), [
      { objectId: "a", model: "upper_half", box: { x0: 10, y0: 20, x1: 110, y1: 120 } },
      { objectId: "b", model: "no_such_tool", box: { x0: 10, y0: 20, x1: 110, y1: 120 } },
      { objectId: "c", model: "disk" },
      { objectId: "d", model: "upper_half", box: { x0: 210, y0: 20, x1: 310, y1: 120 } },
    ]);
    assert.deepEqual([image.width, image.height], [320, 240]);
    assert.equal(image.digest.length, 32);
    assert.deepEqual(
      results.map(({ objectId }) => objectId),
      ["a", "b", "c", "d"],
    );
    const [first, second, third, fourth] = results;
    assert(Math.abs((first?.segmentation?.area ?? 0) - 100 * 50) < 500, String(first?.segmentation?.area));
    assert.equal(first?.segmentation?.model, "upper_half");
    assert.equal(second?.error?.code, "NOT_FOUND");
    assert.match(second.error.reason, /^[A-Z_]+$/);
    assert.notEqual(second.error.requestId, "");
    assert(third?.error instanceof IncompletePrompt);
    assert.equal(third.error.missing.positivePoints, 1);
    assert((fourth?.segmentation?.box?.x0 ?? 0) > 200);
    assert(timing.inferences > 0);
    noBigInts({ image, timing, results: results.map(({ segmentation }) => segmentation) });
  });

  it("writes the forms that were asked for", async () => {
    const box = { x0: 10, y0: 20, x1: 110, y1: 120 };
    const { results } = await client.segment(picture(320, 240), [{ box, forms: ["rle", "png"] }, { box }], {
      model: "upper_half",
      forms: ["box"],
    });
    const [masks, alone] = results.map(({ segmentation }) => segmentation);
    assert.deepEqual(masks?.polygons, []);
    assert.deepEqual([masks?.rle?.width, masks?.rle?.height], [320, 240]);
    assert.deepEqual(
      [...(masks?.png?.subarray(1, 4) ?? [])],
      [..."PNG"].map((letter) => letter.charCodeAt(0)),
    );
    assert.deepEqual([alone?.polygons, alone?.rle, alone?.png], [[], undefined, undefined]);
    assert(alone?.box !== undefined);
  });

  it("starts from an outline that it gave", async () => {
    const image = picture(320, 240);
    const ask = { model: "keeper", points: [{ x: 100, y: 100 }], tolerance: 0 };
    const [{ segmentation } = assert.fail()] = (await client.segment(image, [ask])).results;
    assert(segmentation !== undefined);
    const [again] = (await client.segment(image, [{ model: "keeper", seed: segmentation }])).results;
    assert.deepEqual(again?.segmentation?.polygons, segmentation.polygons);
    assert.equal(again?.segmentation?.scoreKind, "seed");
  });

  it("sees only the region that was asked for", async () => {
    const { results } = await client.segment(
      picture(320, 240),
      [{ model: "upper_half", box: { x0: 120, y0: 60, x1: 180, y1: 160 } }],
      { roi: { x0: 100, y0: 50, x1: 200, y1: 170 } },
    );
    assert(Math.abs((results[0]?.segmentation?.box?.x0 ?? 0) - 120) < 5);
  });
});

describe("detect", () => {
  it("finds boxes, best first, with the labels that were asked for", async () => {
    const found = await client.detect(picture(1024, 1024), {
      model: "finder",
      labels: [{ modelLabel: "thing", label: "object" }],
      maxDetections: 2,
    });
    assert.equal(found.detections.length, 2);
    const [best, second] = found.detections;
    assert(best && second && best.score > second.score);
    assert.deepEqual([best.label, best.modelLabel, best.outline], ["object", "thing", undefined]);
    assert.equal(found.model, "finder");
    noBigInts(found);
  });

  it("outlines what it finds", async () => {
    const found = await client.detect(picture(1024, 1024), { model: "finder", polygons: { model: "upper_half" } });
    assert.equal(found.polygons?.model, "upper_half");
    for (const { outline } of found.detections) assert((outline?.polygons.length ?? 0) > 0);
  });
});

describe("an image that the server holds", () => {
  it("is not sent again, and not decoded again", async () => {
    const relay = new Relay();
    const relayed = connect(await relay.start());
    try {
      const image = unseen(800, 600);
      const prompts = [{ model: "upper_half", box: { x0: 10, y0: 20, x1: 110, y1: 120 } }];
      const first = await relayed.segment(image, prompts);
      assert(relay.sentBytes > image.data.length);
      const before = relay.sentBytes;
      const second = await relayed.segment(image, prompts);
      assert(relay.sentBytes - before < 1000, `${relay.sentBytes - before} bytes`);
      assert.equal(second.timing.decodeUs, 0);
      assert.deepEqual(second.results, first.results);
      const third = await relayed.segment({ digest: first.image.digest }, prompts);
      assert.deepEqual(third.results, first.results);
    } finally {
      await relayed.close();
      relay.stop();
    }
  });

  it("is sent again when it was removed meanwhile", async () => {
    const image = unseen(2200, 2200); // the puppets' memory has room for one of these
    const prompts = [{ model: "upper_half", box: { x0: 10, y0: 20, x1: 110, y1: 120 } }];
    const first = await client.segment(image, prompts);
    await client.segment(unseen(2200, 2200), prompts);
    assert.equal((await rejection(client.segment({ digest: first.image.digest }, prompts))).reason, "IMAGE_NOT_HELD");
    assert.deepEqual((await client.segment(image, prompts)).results, first.results);
  });

  it("is an error when named by a digest that it does not hold", async () => {
    const error = await rejection(client.detect({ digest: new Uint8Array(32) }, { model: "finder" }));
    assert.equal(error.code, "NOT_FOUND");
    assert.equal(error.reason, "IMAGE_NOT_HELD");
  });
});

describe("errors", () => {
  it("name the field of a request that is invalid", async () => {
    const error = await rejection(client.detect(picture(32, 32), { model: "finder", threshold: 2 }));
    assert.equal(error.code, "INVALID_ARGUMENT");
    assert.deepEqual(
      error.violations.map(({ field }) => field),
      ["threshold"],
    );
    assert.equal(error.temporary, false);
    assert.notEqual(error.requestId, "");
  });

  it("have the request id that the caller chose", async () => {
    const metadata = { "x-request-id": "batch-7" };
    const error = await rejection(client.detect(picture(32, 32), { model: "none", metadata }));
    assert.equal(error.requestId, "batch-7");
  });

  it("come before anything is sent for a value that no message can hold", async () => {
    assert.equal((await rejection(client.detect(picture(32, 32), { version: 0.5 }))).code, "INVALID_ARGUMENT");
    assert.equal((await rejection(client.detect("/no/such/file.jpg"))).code, "INVALID_ARGUMENT");
  });

  it("say at once that no server was ever there", async () => {
    const relay = new Relay();
    const target = await relay.start();
    relay.stop();
    const nobody = connect(target);
    const error = await rejection(nobody.serverInfo());
    assert.equal(error.code, "UNAVAILABLE");
    assert.match(error.message, new RegExp(target));
    await nobody.close();
  });

  it("refuse to send a token in plain text to another machine", () => {
    assert.throws(() => connect("polywand.example.org:50051", { token: "secret" }), { code: "INVALID_ARGUMENT" });
  });
});

describe("a connection", () => {
  it("is encrypted, and the server's certificate is checked", async () => {
    const folder = variable("POLYWAND_CERTIFICATES");
    const [ca, cert, key] = ["ca", "cert", "key"].map((name) => readFileSync(join(folder, `${name}.pem`)));
    assert(ca && cert && key);
    const proxy = createServer({ cert, key, ALPNProtocols: ["h2"] }, (secure) => {
      const service = dial(Number(TARGET.split(":").at(-1)), "127.0.0.1");
      secure.pipe(service).pipe(secure);
      for (const socket of [secure, service]) socket.on("error", () => {});
    });
    await new Promise<void>((started) => proxy.listen(0, "127.0.0.1", started));
    const target = `localhost:${(proxy.address() as AddressInfo).port}`;
    const trusting = connect(target, { tls: { ca } });
    const wary = connect(target, { tls: true });
    assert.equal((await trusting.serverInfo()).state, "ready");
    assert.match((await rejection(wary.serverInfo())).message, /certificate/);
    await trusting.close();
    await wary.close();
    proxy.close();
  });

  it("asks for a token for each call", async () => {
    let asked = 0;
    const known = connect(TARGET, { token: async () => `token-${++asked}` });
    await known.serverInfo();
    await known.models();
    assert.equal(asked, 2);
    const unknown = connect(TARGET, { token: () => Promise.reject(new Error("no token today")) });
    await assert.rejects(unknown.serverInfo(), { message: "no token today" });
    assert.equal((await rejection(unknown.open(picture(32, 32)))).code, "UNAUTHENTICATED");
    await known.close();
    await unknown.close();
  });
});

describe("a caller that does not wait", () => {
  it("ends its call by a signal", async () => {
    const ends = new AbortController();
    const call = client.segment(picture(320, 240), [{ model: "disk", points: [{ x: 5, y: 5 }] }], {
      signal: ends.signal,
    });
    ends.abort(new Error("enough"));
    await assert.rejects(call, { message: "enough" });
  });

  it("closes the client", async () => {
    const closed = connect(TARGET);
    await closed.close();
    assert.equal((await rejection(closed.serverInfo())).reason, "CLIENT_CLOSED");
  });
});
