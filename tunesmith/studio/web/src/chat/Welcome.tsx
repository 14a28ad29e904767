import { Empty } from "../parts/Empty";
import { facts } from "./facts";
import { type Model, nameOf } from "./types";

/** An empty conversation: what can be talked to, or why nothing can. */
export function Welcome({ model, problem }: { model?: Model; problem: string }) {
  if (problem) {
    return (
      <div className="welcome failed">
        <Empty title="No model to talk to">
          <p className="note bad">{problem}</p>
        </Empty>
      </div>
    );
  }
  return (
    <div className="welcome">
      {model && (
        <Empty title={`Say something to ${nameOf(model)}.`}>{model.tunesmith && <p>{facts(model.tunesmith)}</p>}</Empty>
      )}
    </div>
  );
}
