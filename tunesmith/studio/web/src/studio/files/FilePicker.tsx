import { Dialog } from "../../parts/Dialog";
import { DropZone } from "./DropZone";
import { type EntryKind, FileList } from "./FileList";

interface Props {
  title: string;
  open: boolean;
  kinds: EntryKind[];
  onPick: (path: string) => void;
  onClose: () => void;
}

/** Picks a file of the studio's disk, or sends one there. */
export function FilePicker({ title, open, kinds, onPick, onClose }: Props) {
  return (
    <Dialog title={title} open={open} onClose={onClose} place="side">
      <FileList kinds={kinds} onPick={onPick} />
      <DropZone onUploaded={onPick} />
    </Dialog>
  );
}
