import { Button } from "./Button";
import { Dialog } from "./Dialog";

interface Props {
  /** A question. */
  title: string;
  /** What is lost, or what follows. */
  text: string;
  /** The verb on the button that does it. */
  verb: string;
  open: boolean;
  onConfirm: () => void;
  onClose: () => void;
}

/** Asks before something that cannot be undone. */
export function Confirm({ title, text, verb, open, onConfirm, onClose }: Props) {
  return (
    <Dialog
      title={title}
      open={open}
      onClose={onClose}
      onSubmit={onConfirm}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="danger">
            {verb}
          </Button>
        </>
      }
    >
      <p className="note">{text}</p>
    </Dialog>
  );
}
