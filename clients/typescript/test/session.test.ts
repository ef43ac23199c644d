/** What a session promises, against the real service. */

import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { connect, IncompletePrompt, type Update } from "@polywand/client";
import { Gate, middle, near, picture, Relay, rejection, TARGET, unseen } from "./helpers.js";

const client = connect(TARGET);
after(() => client.close());

const disk = (x: number, objectId = "") => ({ model: "disk", points: [{ x, y: 100 }], objectId });

/** Run with the inferences of a puppet held. */
async function held(model: string, body: (gate: Gate) => Promise<void>): Promise<void> {
  const gate = new Gate(model);
  try {
    await body(gate);
  } finally {
    gate.open();
  }
}

describe("a session", () => {
  it("answers prompts with outlines, and an undo with exactly the same one", async () => {
    await using session = await client.open(picture(320, 240));
    assert.deepEqual([session.image.width, session.image.height], [320, 240]);
    const one = await session.prompt({ model: "keeper", points: [{ x: 50, y: 60 }] });
    const two = await session.prompt({
      model: "keeper",
      points: [
        { x: 50, y: 60 },
        { x: 200, y: 100 },
      ],
    });
    assert.deepEqual([one.polygons.length, two.polygons.length], [1, 2]);
    assert.deepEqual((await session.prompt({ model: "keeper", points: [{ x: 50, y: 60 }] })).polygons, one.polygons);
  });

  it("chooses a tool for a prompt that names none, and says which", async () => {
    await using session = await client.open(picture(320, 240));
    const outline = await session.prompt({ box: { x0: 10, y0: 10, x1: 90, y1: 90 } });
    assert.equal(outline.model, "wand_click");
  });

  it("says what a prompt still needs", async () => {
    await using session = await client.open(picture(320, 240));
    const error = await rejection(session.prompt({ model: "disk" }));
    assert(error instanceof IncompletePrompt);
    assert.deepEqual(error.missing, { positivePoints: 1, negativePoints: 0, extremePoints: 0, box: false });
  });

  it("goes on after an error of one prompt, which names its field", async () => {
    await using session = await client.open(picture(320, 240));
    const error = await rejection(session.prompt(disk(5000)));
    assert.equal(error.code, "INVALID_ARGUMENT");
    assert.equal(error.violations[0]?.field, "prompt.points[0]");
    assert.equal((await session.prompt(disk(100))).polygons.length, 1);
  });

  it("answers a prompt with its own outline, or with that of a newer one of its object", async () => {
    await using session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      const first = session.prompt(disk(40));
      await gate.begun();
      const others = [80, 120, 160].map((x) => session.prompt(disk(x)));
      gate.open();
      near(middle(await first), 40);
      const [second, third, last] = (await Promise.all(others)).map(middle) as [number, number, number];
      assert(second > 77 && third >= second && last >= third);
      near(last, 160);
    });
  });

  it("gives a drag its newest answer, and counts those that it skipped", async () => {
    await using session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      session.send(disk(40));
      await gate.begun();
      let last = 0;
      for (let x = 41; x <= 60; x++) last = session.send(disk(x));
      gate.open();
      const seen: Update[] = [];
      for await (const update of session.updates()) {
        seen.push(update);
        if (update.sequence === last) break;
      }
      near(middle(seen.at(-1)?.segmentation ?? {}), 60);
      assert.equal(seen.length + seen.reduce((sum, { skipped }) => sum + skipped, 0), 21);
      assert(seen.length < 21);
    });
  });

  it("lets objects not wait for each other", async () => {
    await using session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      const slow = session.prompt(disk(40, "slow"));
      await gate.begun();
      const quick = await session.prompt({ model: "keeper", points: [{ x: 9, y: 9 }], objectId: "quick" });
      assert.equal(quick.polygons.length, 1);
      gate.open();
      await slow;
    });
  });

  it("frees objects; a prompt of one that still waits rejects", async () => {
    await using session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      const waits = rejection(session.prompt(disk(40, "a")));
      await gate.begun();
      const freed = session.forget("a");
      assert.equal((await waits).reason, "FORGOTTEN");
      gate.open();
      await freed;
    });
    await session.forgetAll();
    assert.equal((await session.prompt(disk(90, "a"))).polygons.length, 1);
  });

  it("says why an object cannot be freed", async () => {
    await using session = await client.open(picture(320, 240));
    assert.equal((await rejection(session.forget("x".repeat(1000)))).code, "INVALID_ARGUMENT");
  });

  it("works on another image; what waits for the last one rejects", async () => {
    await using session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      const old = rejection(session.prompt(disk(40)));
      await gate.begun();
      const next = session.setImage(unseen(200, 150));
      assert.equal((await old).reason, "SUPERSEDED");
      gate.open();
      assert.equal((await next).width, 200);
    });
    assert.equal(session.image.height, 150);
    assert.equal((await session.prompt(disk(90))).polygons.length, 1);
  });

  it("keeps its image when another one is refused", async () => {
    await using session = await client.open(picture(320, 240));
    const refused = session.setImage(new Uint8Array([1, 2, 3]));
    const waits = rejection(session.prompt(disk(40)));
    const error = await rejection(refused);
    assert.equal(error.code, "INVALID_ARGUMENT");
    assert.equal(await waits, error);
    assert.equal(session.image.width, 320);
    assert.equal((await session.prompt(disk(310))).polygons.length, 1);
  });

  it("rejects what waits when it is closed", async () => {
    const session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      const waits = rejection(session.prompt(disk(40)));
      await gate.begun();
      const closed = session.close();
      assert.equal((await waits).reason, "SESSION_CLOSED");
      gate.open();
      await closed;
    });
    assert.equal((await rejection(session.prompt(disk(40)))).reason, "SESSION_CLOSED");
  });

  it("gives up a prompt by its timeout, or by a signal", async () => {
    await using session = await client.open(picture(320, 240));
    await held("disk", async (gate) => {
      assert.equal((await rejection(session.prompt(disk(40), { timeoutMs: 50 }))).code, "DEADLINE_EXCEEDED");
      const ends = new AbortController();
      const waits = session.prompt(disk(41), { signal: ends.signal });
      ends.abort(new Error("enough"));
      await assert.rejects(waits, { message: "enough" });
      gate.open();
    });
    assert.equal((await session.prompt(disk(42))).polygons.length, 1);
  });

  it("is refused where no server was ever there", async () => {
    const relay = new Relay();
    const nobody = connect(await relay.start());
    relay.stop();
    assert.equal((await rejection(nobody.open(picture(320, 240)))).code, "UNAVAILABLE");
    await nobody.close();
  });

  it("rejects an image that cannot be read", async () => {
    assert.equal((await rejection(client.open("/no/such/file.jpg"))).code, "INVALID_ARGUMENT");
    assert.equal((await rejection(client.open(new Uint8Array([1, 2, 3])))).violations[0]?.field, "image.encoded");
  });
});

describe("a session whose connection is cut", () => {
  it("goes on: the image is named by its digest, and the newest prompt of each object is sent again", async () => {
    const relay = new Relay();
    const relayed = connect(await relay.start());
    const image = unseen(800, 600);
    const session = await relayed.open(image);
    assert(relay.sentBytes > image.data.length);
    const before = relay.sentBytes;
    await held("disk", async (gate) => {
      const waiting = [
        session.prompt(disk(40, "a")),
        session.prompt(disk(80, "a")),
        session.prompt({ model: "keeper", points: [{ x: 9, y: 9 }], objectId: "b" }),
      ];
      await gate.begun();
      relay.cut();
      gate.open();
      const [first, second, other] = await Promise.all(waiting);
      assert.deepEqual(first, second);
      near(middle(second ?? {}), 80);
      assert.equal(other?.model, "keeper");
    });
    assert(relay.sentBytes - before < 5000, `${relay.sentBytes - before} bytes`);
    relay.cut();
    assert.equal((await session.prompt(disk(90, "a"))).polygons.length, 1);
    await relayed.close();
    relay.stop();
  });
});

describe("a session whose image the server removed, to make room for others", () => {
  it("sends it again by itself", async () => {
    await using idle = await client.open(unseen(2200, 2200)); // the puppets' memory has room for one of these
    const first = await idle.prompt(disk(1000));
    const others = connect(TARGET);
    await (await others.open(unseen(2200, 2200))).close();
    await others.close();
    assert.deepEqual((await idle.prompt(disk(1000))).polygons, first.polygons);
  });
});
