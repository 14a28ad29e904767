import { type ReactNode, useMemo, useRef, useState } from "react";

import { messageOf } from "../../api/useFetched";
import { Conversation } from "../../chat/Conversation";
import type { Prompt } from "../../chat/TokensDialog";
import type { TurnActions } from "../../chat/TurnView";
import { TokensDialog } from "../../chat/TokensDialog";
import type { Model, Settings } from "../../chat/types";
import { tried } from "../toasts";
import { ask, questionOf } from "./ask";
import { type Followed, isWriting, type State } from "./conversation";
import { Correction, Marks, writeRows } from "./Marks";
import { imageRefusal, serverOf } from "./models";
import { render } from "./render";
import { messagesBefore, turnsOf } from "./turns";
import { useEscape } from "./useEscape";

interface Props {
  /** Null for a new conversation. */
  followed: Followed | null;
  state: State;
  models: Model[];
  settings: Settings;
  welcome: ReactNode;
  draft: string;
}

/** The open conversation. */
export function ChatPane({ followed, state, models, settings, welcome, draft }: Props) {
  const { view, problem } = state;
  const turns = useMemo(() => (view ? turnsOf(view) : []), [view]);
  const running = isWriting(view);
  const [refusal, setRefusal] = useState("");
  const [prompt, setPrompt] = useState<Prompt | null>(null);
  const [corrected, setCorrected] = useState<{ turn: number; answer: number } | null>(null);
  const box = useRef<HTMLTextAreaElement>(null);
  const latest = useRef({ settings, models });
  latest.current = { settings, models };

  const actions = useMemo((): TurnActions => {
    const now = () => followed!.store.get().view!;
    const again = (turn: number, question?: string) =>
      void tried(() => {
        const replaces = now().turns[turn]!.id;
        return ask(followed, "", questionOf(latest.current.settings, { question, replaces }));
      });
    return {
      regenerate: () => again(now().turns.length - 1),
      edit: again,
      resume: (answer) =>
        void tried(() => {
          const { id, server, model } = now().turns.at(-1)!.answers[answer]!;
          const { settings, models } = latest.current;
          return followed!.resume({
            answer: id,
            server: serverOf(models, server, model),
            max_tokens: settings.max_tokens,
          });
        }),
      showTokens(turn, answer) {
        const view = now();
        const { server, model } = view.turns[turn]!.answers[answer]!;
        setPrompt({ model, read: () => render(server, model, messagesBefore(view, turn, answer)) });
      },
      further(turn, answer) {
        const view = now();
        return (
          <Marks
            turn={view.turns[turn]!}
            answer={view.turns[turn]!.answers[answer]!}
            onMark={async (mark) => {
              await writeRows(view, mark);
              await followed!.load();
            }}
            onCorrect={() => setCorrected({ turn, answer })}
          />
        );
      },
    };
  }, [followed]);

  const stop = () => void tried(() => followed!.stop());
  useEscape(running ? stop : null);

  const send = async (question: string, images: string[]) => {
    setRefusal("");
    try {
      if (!models.length) throw new Error("No model is running; start a server first.");
      await ask(followed, settings.system, questionOf(settings, { question, images }));
      return true;
    } catch (error) {
      setRefusal(messageOf(error));
      return false;
    }
  };

  const correctedTurn = corrected && view?.turns[corrected.turn];
  return (
    <>
      <Conversation
        landmark="section"
        turns={turns}
        models={models}
        asMarkdown={settings.markdown}
        running={running}
        actions={actions}
        welcome={welcome}
        notice={refusal || problem}
        status={running ? "Answering" : ""}
        box={box}
        draft={draft}
        imageRefusal={imageRefusal(models, settings)}
        onSend={send}
        onStop={stop}
      />
      <TokensDialog prompt={prompt} onClose={() => setPrompt(null)} />
      {correctedTurn && (
        <Correction
          turn={correctedTurn}
          answer={correctedTurn.answers[corrected.answer]!}
          onMark={async (mark) => {
            await writeRows(view!, mark);
            await followed!.load();
          }}
          onClose={() => setCorrected(null)}
        />
      )}
    </>
  );
}
