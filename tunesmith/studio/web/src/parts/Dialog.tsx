import { type FormEvent, type ReactNode, useEffect, useId, useRef } from "react";

import { Button } from "./Button";

interface Props {
  id?: string;
  title: string;
  open: boolean;
  onClose: () => void;
  /** `side`: a sheet as high as the window. */
  place?: "center" | "side";
  /** Without it, every submit button closes the dialog. */
  onSubmit?: (event: FormEvent<HTMLFormElement>) => void;
  /** Buttons that replace the Close button beside the title; they stand at the end. */
  actions?: ReactNode;
  children: ReactNode;
}

/** A modal dialog. Its content is a form: the Close button is refused while a field is invalid, Escape never. */
export function Dialog({ id, title, open, onClose, place = "center", onSubmit, actions, children }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const titleId = useId();

  useEffect(() => {
    if (open) dialog.current?.showModal();
    else dialog.current?.close();
  }, [open]);

  return (
    <dialog
      ref={dialog}
      id={id}
      className={`dialog ${place}`}
      aria-labelledby={titleId}
      onClose={onClose}
      onMouseDown={(event) => event.target === event.currentTarget && event.currentTarget.close()}
    >
      <form method="dialog" onSubmit={onSubmit}>
        <div className="title">
          <h2 id={titleId}>{title}</h2>
          {!actions && (
            <Button type="submit" small>
              Close
            </Button>
          )}
        </div>
        {open && children}
        {actions && <div className="actions">{actions}</div>}
      </form>
    </dialog>
  );
}
