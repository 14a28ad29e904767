import { useEffect, useMemo, useSyncExternalStore } from "react";

import { connection, followConversations } from "../../api/live";
import { useValue } from "../../api/value";
import { followConversation, type Followed, type State } from "./conversation";

const nothing: State = { view: null, problem: "" };
const never = () => () => {};
const noState = () => nothing;

/** Follows a conversation while the page is seen: a browser has few connections, which hidden pages leave to others. */
export function useConversation(name: string | null): { followed: Followed | null; state: State } {
  const online = useValue(connection);
  const followed = useMemo(() => (name ? followConversation(name) : null), [name]);
  const state = useSyncExternalStore(followed?.store.subscribe ?? never, followed?.store.get ?? noState);

  useEffect(() => {
    if (!followed) return;
    const looked = () => (document.hidden ? followed.leave() : void followed.load());
    looked();
    document.addEventListener("visibilitychange", looked);
    return () => {
      document.removeEventListener("visibilitychange", looked);
      followed.leave();
    };
  }, [followed, online]);

  useEffect(() => {
    if (!name || !followed) return;
    // Another tab has asked or changed something.
    return followConversations((changed) => {
      if (document.hidden || !(name in changed) || changed[name] === followed.store.get().view?.changed) return;
      void followed.load();
    });
  }, [name, followed]);

  return { followed, state };
}
