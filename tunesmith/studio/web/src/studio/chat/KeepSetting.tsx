import { client, data } from "../../api/client";
import { useFetched } from "../../api/useFetched";
import { Check } from "../../parts/Field";
import { tried } from "../toasts";

/** Whether conversations stay on the machine's disk. */
export function KeepSetting() {
  const fetched = useFetched("chat settings", (signal) => data(client.GET("/api/chat/settings", { signal })));
  const { data: settings, set, reload } = fetched;
  const change = async (keep: boolean) => {
    set({ keep });
    if (!(await tried(() => data(client.POST("/api/chat/settings", { body: { keep } }))))) reload();
  };
  return (
    <div>
      <Check
        name="keep"
        label="Keep new conversations on this machine’s disk"
        checked={settings?.keep ?? true}
        disabled={!settings}
        onChange={(event) => void change(event.target.checked)}
      />
      <p className="note">Others end with the studio. All of them stay on this machine.</p>
    </div>
  );
}
