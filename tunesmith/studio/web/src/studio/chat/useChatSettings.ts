import { useCallback, useState } from "react";

import { loadSettings, saveSettings } from "../../chat/browserStorage";
import { withModels } from "../../chat/state";
import type { Model, Settings } from "../../chat/types";

/** The settings of this browser, with models that there are. */
export function useChatSettings(models: Model[]): [Settings, (changes: Partial<Settings>) => void] {
  const [chosen, setChosen] = useState(loadSettings);
  const change = useCallback(
    (changes: Partial<Settings>) =>
      setChosen((before) => {
        const next = { ...before, ...changes };
        saveSettings(next);
        return next;
      }),
    [],
  );
  return [withModels(chosen, models), change];
}
