import { type ReactNode, useMemo, useRef, useState, useSyncExternalStore } from "react";

import { Button } from "../parts/Button";
import { Confirm } from "../parts/Confirm";
import type { ChatApi } from "./api";
import type { KeyStore } from "./browserStorage";
import "./chat.css";
import { Conversation } from "./Conversation";
import type { ConversationStore } from "./conversationStore";
import { ModelChoice } from "./ModelChoice";
import { SettingsDialog } from "./SettingsDialog";
import { isRunning, messagesUpTo } from "./state";
import { type Prompt, TokensDialog } from "./TokensDialog";
import type { TurnActions } from "./TurnView";
import { useController } from "./useController";
import { Welcome } from "./Welcome";

interface Props {
  api: ChatApi;
  conversations: ConversationStore;
  /** Where the API key is kept; without it none is asked for. */
  apiKey?: KeyStore;
  /** Stands before the choice of models. */
  heading?: ReactNode;
}

/** A chat with one model, or with two side by side. `api` and `conversations` must not change. */
export function Chat({ api, conversations, apiKey, heading }: Props) {
  const controller = useController(api, conversations);
  const { store } = controller;
  const state = useSyncExternalStore(store.subscribe, store.get);
  const { turns, models, settings, modelsProblem } = state;
  const running = isRunning(state);

  const [settingsOpen, setSettingsOpen] = useState(false);
  const [clearOpen, setClearOpen] = useState(false);
  const [prompt, setPrompt] = useState<Prompt | null>(null);
  const box = useRef<HTMLTextAreaElement>(null);

  const send = (question: string) => {
    if (!models.length || !state.loaded) {
      controller.open(); // the server may be there by now; if not, that is said
      return false;
    }
    void controller.ask(question);
    return true;
  };

  const actions = useMemo(
    (): TurnActions => ({
      regenerate: controller.regenerate,
      keep: controller.keep,
      resume: (answer) => void controller.resume(answer),
      showTokens(turn, answer) {
        const all = controller.store.get().turns;
        const { model } = all[turn]!.answers[answer]!;
        setPrompt({ model, read: () => api.render(model, messagesUpTo(all, turn)) });
      },
    }),
    [api, controller],
  );

  const closeSettings = () => {
    setSettingsOpen(false);
    controller.open(); // there is a key now, perhaps
  };

  const closeClear = () => {
    setClearOpen(false);
    if (!store.get().turns.length) box.current!.focus(); // the Clear button is disabled now
  };

  return (
    <div className="chat">
      <header>
        {heading}
        <ModelChoice models={models} settings={settings} disabled={running} onChange={controller.change} />
        <div className="tools">
          <Button id="open-settings" look="quiet" onClick={() => setSettingsOpen(true)}>
            Settings
          </Button>
          <Button id="clear" look="quiet" disabled={running || !turns.length} onClick={() => setClearOpen(true)}>
            Clear
          </Button>
        </div>
      </header>

      <Conversation
        turns={turns}
        models={models}
        asMarkdown={settings.markdown}
        running={running}
        actions={actions}
        welcome={<Welcome model={models.find(({ id }) => id === settings.model)} problem={modelsProblem} />}
        notice={state.notice || (turns.length ? modelsProblem : "")}
        status={state.status}
        box={box}
        onSend={send}
        onStop={controller.stop}
      />

      <SettingsDialog
        open={settingsOpen}
        settings={settings}
        models={models}
        apiKey={apiKey}
        onChange={controller.change}
        onKeyLost={controller.warnOfSettings}
        onClose={closeSettings}
      />
      <TokensDialog prompt={prompt} onClose={() => setPrompt(null)} />
      <Confirm
        title="Clear the conversation?"
        text="Its questions and answers are deleted from this browser."
        verb="Clear"
        open={clearOpen}
        onConfirm={controller.clear}
        onClose={closeClear}
      />
    </div>
  );
}
