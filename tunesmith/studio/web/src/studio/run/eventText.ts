import { bytes, decimal, duration, energy, integer, plural } from "../numbers";

type Event = Record<string, any>;

/** What an event of a run says, in words. tunesmith/run.py describes the events. */
export function eventText(event: Event): string {
  const step = typeof event.step === "number" ? `step ${integer(event.step)}` : "";
  switch (event.event) {
    case "stage":
      return event.doing;
    case "data":
      return `${integer(event.examples)} examples, ${integer(event.held_out)} rows held out`;
    case "encoding":
      return `${plural(event.examples ?? 0, "example")} from ${plural(event.rows ?? 0, "row")} in ${duration(event.seconds ?? 0)}`;
    case "plan":
      return event.steps ? plural(event.steps, "step") : "";
    case "start":
      return `${integer(event.trainable_parameters)} of ${integer(event.parameters)} parameters are trained`;
    case "eval":
      return `${step}: held-out loss ${decimal(event.loss)} (95 % interval ${decimal(event.low)} to ${decimal(event.high)})`;
    case "samples":
      return `${step}: ${plural(event.samples?.length ?? 0, "answer")}`;
    case "checkpoint":
      return `${step}: ${bytes(event.bytes)} written in ${duration(event.seconds)}${event.best ? ", the best so far" : ""}`;
    case "energy":
      return event.joules == null ? `unknown: ${event.unknown ?? ""}` : energy(event.joules / 3.6e6);
    case "compile":
      return `${step}: ${plural(event.graphs ?? 0, "graph")} in ${duration(event.seconds ?? 0)}`;
    case "warning":
      return event.message;
    case "recovered":
      return `${step}: ${event.cause ?? ""}`;
    case "stop":
      return [step, String(event.reason).replaceAll("_", " "), event.message].filter(Boolean).join(": ");
    default:
      return step;
  }
}
