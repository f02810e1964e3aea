// A SafeLadder verifier in JavaScript: adds a verdict on the politeness of every completion of a group.
//
// This file is what the actor is about; link.mjs beside it is the conversation with the hub, the same for any actor.
// In cluster.yaml:  command: [node, launch/examples/node/politeness.mjs]   (docs/actors.md has the whole entry)

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Reject, serve } from "./link.mjs";

const POLITE = /\b(please|thanks|thank you|sorry|excuse me|happy to help|glad to help)\b|请|谢谢|抱歉|不客气/i;
const RUDE = /\b(stupid|idiot|moron|dumb|shut up|go away)\b|白痴|笨蛋|闭嘴|滚开/i;

const { values: options } = parseArgs({ options: { "delay-ms": { type: "string", default: "0" } } });

/** Returns what the work carries to its next stop. Whatever it throws gives the work back, to be tried again. */
async function handle(work) {
  const group = work.payload; // a map within the message: decoding the message has decoded it too
  if (group.type !== "group") throw new Reject(`${work.id} carries a ${group.type}, this actor takes groups`);
  await sleep(Number(options["delay-ms"])); // stands for a judge that takes its time: a model, a service
  const { completions = [], verdicts = [], prefix = "" } = group; // what has its default value is not on the wire
  return { ...group, verdicts: [...verdicts, ...completions.map((one, sample) => judge(one, sample, prefix))] };
}

function judge(completion, sample, prefix) {
  const verdict = { sample, verifier: "politeness", version: "1", principle: "value" };
  if (completion.finish === "error") return { ...verdict, status: "abstain" }; // a failure is a status, never a score
  const text = prefix + completion.text;
  const [label, score] = RUDE.test(text) ? ["rude", 0] : POLITE.test(text) ? ["polite", 1] : ["neutral", 0.5];
  return { ...verdict, status: "ok", label, score };
}

await serve(handle);
