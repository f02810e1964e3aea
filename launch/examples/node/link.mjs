// A worker's side of SafeLadder's wire, from the socket up: nothing of the Python package is used.
//
//   we say     hello, then a beat every `beat_s` seconds, done or fail for every lease, bye
//   we hear    welcome, lease, ack, pong, or refused
//
// What it promises, whatever breaks in between:
//   * a request (done, fail) is sent again until the hub has settled it with an ack;
//   * every lease that we hold stands in each beat, and in the hello that we say to a restarted hub;
//   * the raw frames behind a message, the arrays, are passed on as they came, with their description in the work.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { Decoder, Encoder } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

export class Reject extends Error {} // this work can never be handled: set aside without another try

const EXIT_CONFIGURATION = 78; // tells the supervisor that another start would not help
const [RESEND_S, HELLO_S, SILENCE_S] = [2, 1, 10];

// ------------------------------------------------------------------------------------------ who we are, and to whom we talk

const boot = randomUUID().slice(-12); // new for every start: tells the hub a restarted process from a reconnected one
const name = required("SAFELADDER_NAME");
const schema = JSON.parse(readFileSync(required("SAFELADDER_SCHEMA_FILE"), "utf8"))["x-schema"]; // such as "1:63b2e75cc6a7a19d"
if (!schema) quit(`${process.env.SAFELADDER_SCHEMA_FILE} does not name its schema as "x-schema"`);
const introduction = {
  type: "hello", name, boot, role: "verifier", pid: process.pid, host: hostname(),
  queues: required("SAFELADDER_QUEUES").split(","), credit: Number(required("SAFELADDER_CREDIT")),
};

// Integers beyond 2**53 (a seed may be one) would lose digits as JavaScript numbers, so 64-bit ones stay BigInt: lease tokens too.
const encoder = new Encoder({ useBigInt64: true, ignoreUndefined: true });
const decoder = new Decoder({ useBigInt64: true });

const socket = new Dealer({
  routingId: `${name}|${boot}`, immediate: true, sendTimeout: 0, linger: 1000, maxMessageSize: 64 * 2 ** 20,
  heartbeatInterval: 2000, heartbeatTimeout: 10_000, reconnectInterval: 100, reconnectMaxInterval: 2000,
});
if (process.env.SAFELADDER_KEY_FILE) { // given where the hub demands keys
  const key = JSON.parse(readFileSync(process.env.SAFELADDER_KEY_FILE, "utf8"));
  Object.assign(socket, { curveServerKey: key.hub, curvePublicKey: key.public, curveSecretKey: key.secret });
}

const held = new Map(); // lease -> {lease, work, stop}: given to us, and neither taken back nor settled
const pending = new Map(); // request -> {body, frames, sentAt}: what the hub has not settled yet
let [welcomed, hubBoot, run, beatS] = [false, null, "", 1];
let [helloAt, beatAt, heardAt] = [-Infinity, -Infinity, clock()];
let [requests, handled, unfinished, busySince, handle] = [0, 0, 0, null, null];

/** Gives every leased work to `handler`, until the process is told to end. */
export async function serve(handler) {
  handle = handler;
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => leave(0, "process.finished", signal));
  log("info", "process.started", { schema, queues: introduction.queues, credit: introduction.credit });
  socket.connect(required("SAFELADDER_ENDPOINT"));
  setInterval(tick, 50);
  for await (const parts of socket) receive(parts);
}

// -------------------------------------------------------------------------------------------------------------- speaking

function send(body, frames = []) {
  const bytes = frames.reduce((sum, frame) => sum + frame.length, 0);
  const header = { schema, sender: name, frames: frames.length, bytes };
  // Without a connection a send fails at once (sendTimeout 0). Nothing is lost by it: hello and requests are repeated.
  socket.send([encoder.encode(header), encoder.encode(body), ...frames]).catch((error) => {
    if (error.code !== "EAGAIN") log("error", "message.unsent", { error: error.message });
  });
}

function sayHello() {
  [welcomed, helloAt] = [false, clock()];
  send({ ...introduction, held: [...held.values()] });
}

function request(body, frames = []) {
  const entry = { body: { ...body, request: `${boot}.${++requests}` }, frames, sentAt: clock() };
  pending.set(entry.body.request, entry);
  if (welcomed) send(entry.body, frames); // else the welcome sends it
}

function resend(entry) {
  entry.sentAt = clock();
  send(entry.body, entry.frames);
}

function tick() {
  const now = clock();
  if (now - heardAt > SILENCE_S) welcomed = false; // whoever answers next gets a hello
  if (!welcomed && now - helloAt >= HELLO_S) sayHello();
  if (!welcomed) return;
  if (now - beatAt >= beatS) {
    beatAt = now;
    const busy_s = busySince === null ? 0 : now - busySince; // how the supervisor tells a stuck actor from an idle one
    send({ type: "beat", boot, progress: handled, busy_s, leases: [...held.keys()] });
  }
  for (const entry of pending.values()) if (now - entry.sentAt >= RESEND_S) resend(entry);
}

function leave(code, event, reason) {
  log(code ? "error" : "info", event, { reason, held: held.size, handled });
  if (code) console.error(reason); // the supervisor reports the last line of a failed process
  send({ type: "bye", reason }); // what we hold goes back to its queue, and no attempt is counted
  socket.close(); // what was sent still goes out, for at most `linger` milliseconds
  process.exit(code);
}

// ------------------------------------------------------------------------------------------------------------- listening

function receive([head, rest, ...frames]) {
  let header, body;
  try {
    [header, body] = [decoder.decode(head), decoder.decode(rest)];
  } catch (error) { // a lease that nobody can read is not renewed either: the hub notices
    return log("warning", "message.rejected", { reason: error.message });
  }
  if (header.schema !== schema) {
    return leave(EXIT_CONFIGURATION, "hub.refused", `the hub speaks schema ${header.schema}, this actor ${schema}`);
  }
  heardAt = clock();
  switch (body.type) {
    case "welcome": return onWelcome(body);
    case "lease": return void onLease(body, frames);
    case "ack": return onAck(body);
    case "pong": // a boot that we do not know: another hub process has taken over, or this one has given us up
      if (!welcomed) return; // a hello is under way, and tick repeats it
      return body.hub_boot === hubBoot ? body.revoked.forEach(revoke) : sayHello();
    case "refused": // with `retry` (our predecessor is still counted as alive), tick says hello again
      return body.retry ? undefined : leave(EXIT_CONFIGURATION, "hub.refused", body.reason);
    case "problem": return log("warning", "hub.complained", { reason: body.reason });
    // notice, reply and report are for actors that follow topics, make calls or ask questions
  }
}

function onWelcome(welcome) {
  [welcomed, hubBoot, run, beatS, beatAt] = [true, welcome.hub_boot, welcome.run, welcome.beat_s, clock()];
  const kept = new Set(welcome.kept); // those of our leases that still stand
  log("info", "hub.joined", { hub_boot: hubBoot, kept: kept.size });
  [...held.keys()].filter((lease) => !kept.has(lease)).forEach(revoke);
  pending.forEach(resend);
}

async function onLease({ lease, work }, frames) {
  const stop = work.stop ?? 0; // 0 is the default, and defaults are left out on the wire
  held.set(lease, { lease, work: work.id, stop });
  if (unfinished++ === 0) busySince = clock();
  let answer;
  try {
    const last = stop + 1 === work.route.length; // there a work is over, and only a call still has an answer to give
    const output = { ...work, payload: await handle(work), stop: last ? stop : stop + 1 }; // `arrays` goes along
    answer = { type: "done", lease, outputs: last && !work.reply_to ? [] : [output] };
  } catch (error) { // the boundary of one piece of work: it goes back, with what happened
    log("warning", "work.failed", { id: work.id, error: String(error) });
    answer = { type: "fail", lease, error: String(error), retry: !(error instanceof Reject) };
  }
  [handled, unfinished] = [handled + 1, unfinished - 1];
  busySince = unfinished ? clock() : null;
  if (held.has(lease)) request(answer, answer.outputs?.length ? frames : []); // else it was revoked meanwhile
}

function onAck({ request, status, detail }) { // accepted, duplicate, stale or refused: in each case it is over
  const settled = pending.get(request);
  if (!settled) return;
  pending.delete(request);
  held.delete(settled.body.lease);
  log(status === "refused" ? "warning" : "info", "work.settled", { lease: settled.body.lease, status, detail });
}

function revoke(lease) {
  // With a request under way the lease stays: the ack, stale or not, settles it.
  if ([...pending.values()].some((entry) => entry.body.lease === lease)) return;
  if (held.delete(lease)) log("info", "lease.revoked", { lease });
}

// --------------------------------------------------------------------------------------------------------------- details

function clock() {
  return performance.now() / 1000; // seconds, never set back
}

function log(level, event, fields = {}) {
  const [role, replica] = name.split("/");
  const head = { ts: new Date().toISOString(), level, event, run, role, replica: Number(replica ?? 0), boot, pid: process.pid };
  console.log(JSON.stringify({ ...head, ...fields }, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
}

function required(variable) {
  return process.env[variable] || quit(`${variable} is not set: safeladder starts this program as the \`command:\` of a pool`);
}

function quit(problem) {
  console.error(problem);
  process.exit(EXIT_CONFIGURATION);
}
