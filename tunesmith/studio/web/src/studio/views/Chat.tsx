import { useEffect, useMemo, useState } from "react";

import type { Server } from "../../api/client";
import "../../chat/chat.css";
import { ModelChoice } from "../../chat/ModelChoice";
import { SettingsDialog } from "../../chat/SettingsDialog";
import type { Model, Settings } from "../../chat/types";
import { Welcome } from "../../chat/Welcome";
import { Button } from "../../parts/Button";
import { Dialog } from "../../parts/Dialog";
import { ChatPane } from "../chat/ChatPane";
import { isWriting } from "../chat/conversation";
import { DeleteConversation, RenameConversation } from "../chat/ConversationDialogs";
import { ConversationList, type ConversationRow } from "../chat/ConversationList";
import { KeepSetting } from "../chat/KeepSetting";
import { askedModel, chatModels } from "../chat/models";
import { ServerNeeded } from "../chat/ServerNeeded";
import { useChatSettings } from "../chat/useChatSettings";
import { useConversation } from "../chat/useConversation";
import { go, setQuery, usePlace } from "../router";
import { StartServer } from "../serve/StartServer";
import { lookAtServers, useServers } from "../serve/useServers";
import { View } from "../shell/View";
import { tried } from "../toasts";

const SETTLE_MS = 400; // after the last key, before the system prompt is saved

type Open = { kind: "settings" | "list" | "start" } | { kind: "rename" | "delete"; row: ConversationRow };

export function Chat() {
  const { query } = usePlace();
  const name = query.get("conversation");
  const servers = useServers();
  const models = useMemo(() => chatModels(servers ?? []), [servers]);
  const [settings, change] = useChatSettings(models);
  const { followed, state } = useConversation(name);
  const { view } = state;
  const running = isWriting(view);
  const wanted = query.get("serve");
  const [opened, setOpened] = useState<Open | null>(null);
  const [search, setSearch] = useState("");
  const close = () => setOpened(null);
  const started = ({ id }: Server) => {
    setQuery({ serve: null, server: id });
    close();
    void tried(lookAtServers);
  };

  useWantedModel(query.get("server"), query.get("model"), models, change);
  useEffect(() => {
    if (wanted && models.length) setOpened({ kind: "start" });
  }, [wanted, models.length > 0]);
  const setSystem = useSaved((system: string) => followed && void tried(() => followed.change({ system })), SETTLE_MS);

  const changeSettings = (changes: Partial<Settings>) => {
    change(changes);
    if (changes.system !== undefined) setSystem(changes.system);
  };

  const list = (onChosen?: () => void) => (
    <ConversationList
      open={name}
      search={search}
      onSearch={setSearch}
      onRename={(row) => setOpened({ kind: "rename", row })}
      onDelete={(row) => setOpened({ kind: "delete", row })}
      onChosen={onChosen}
    />
  );

  const welcome =
    servers && !models.length ? (
      <ServerNeeded servers={servers} first={wanted} onStarted={started} />
    ) : (
      <Welcome model={models.find(({ id }) => id === settings.model)} problem="" />
    );

  return (
    <div className="chat-view">
      <aside aria-label="Conversations">{list()}</aside>
      <div className="chat">
        <View
          title="Chat"
          aside={
            <>
              <Button className="narrow" onClick={() => setOpened({ kind: "list" })}>
                Conversations
              </Button>
              {models.length > 0 && (
                <ModelChoice models={models} settings={settings} disabled={running} onChange={change} />
              )}
              <div className="tools">
                {models.length > 0 && (
                  <Button look="quiet" onClick={() => setOpened({ kind: "start" })}>
                    Serve…
                  </Button>
                )}
                <Button id="open-settings" look="quiet" onClick={() => setOpened({ kind: "settings" })}>
                  Settings
                </Button>
              </div>
            </>
          }
        >
          <ChatPane
            key={name}
            followed={followed}
            state={state}
            models={models}
            settings={settings}
            welcome={name && !view ? null : welcome}
            draft={`chat.${name ?? "new"}`}
          />
        </View>
      </div>

      <Dialog title="Conversations" place="side" open={opened?.kind === "list"} onClose={close}>
        {list(close)}
      </Dialog>
      <Dialog title="Start a server" place="side" open={opened?.kind === "start"} onClose={close}>
        <StartServer first={wanted} onStarted={started} />
      </Dialog>
      <SettingsDialog
        open={opened?.kind === "settings"}
        settings={{ ...settings, system: view?.system ?? settings.system }}
        models={models}
        onChange={changeSettings}
        onClose={close}
      >
        <KeepSetting />
      </SettingsDialog>
      {opened?.kind === "rename" && (
        <RenameConversation row={opened.row} onClose={close} onDone={() => void followed?.load()} />
      )}
      {opened?.kind === "delete" && (
        <DeleteConversation row={opened.row} onClose={close} onDone={() => opened.row.id === name && go(["chat"])} />
      )}
    </div>
  );
}

/** Chooses the model that the address names, or the first of its server, once. A server may still be loading. */
function useWantedModel(
  server: string | null,
  name: string | null,
  models: Model[],
  change: (changes: Partial<Settings>) => void,
) {
  useEffect(() => {
    const served = models.filter(({ id }) => server && askedModel(id).server === server);
    const found = served.find((model) => model.name === name) ?? served[0];
    if (!found) return;
    change({ model: found.id });
    setQuery({ server: null, model: null });
  });
}

/** Calls with the last value once no other has come for a while. */
function useSaved<T>(save: (value: T) => void, wait: number): (value: T) => void {
  const [pending, setPending] = useState<{ value: T } | null>(null);
  useEffect(() => {
    if (!pending) return;
    const timer = setTimeout(() => {
      save(pending.value);
      setPending(null);
    }, wait);
    return () => clearTimeout(timer);
  }, [pending]);
  return (value) => setPending({ value });
}
