import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";
import { close, toasts } from "../toasts";

export function Toasts() {
  const shown = useValue(toasts);
  return (
    <section className="toasts" aria-label="Messages">
      {shown.map(({ id, tone, text }) => (
        <div key={id} className={`toast ${tone}`} role={tone === "bad" ? "alert" : "status"}>
          <p>{text}</p>
          <Button look="quiet" small aria-label="Close this message" onClick={() => close(id)}>
            ✕
          </Button>
        </div>
      ))}
    </section>
  );
}
