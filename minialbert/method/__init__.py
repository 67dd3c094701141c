"""The paper, in reading order: where each equation is, and what computes it faster in training.

| equation                      | file                | name                    | fast twin                         |
|-------------------------------|---------------------|-------------------------|-----------------------------------|
| 1: a teacher                  | encoders            | Teacher                 |                                   |
| 2: one block, applied again   | modeling_minialbert | MiniAlbertBlock         | fast.compilation.compile_layers   |
| 3: an adapter                 | modeling_minialbert | BottleneckAdapter       |                                   |
| 4: the loop, with adapters    | modeling_minialbert | MiniAlbertModel.forward |                                   |
| 5: low-rank embeddings        | modeling_minialbert | MiniAlbertEmbeddings    |                                   |
| 6: masked LM                  | losses              | masked_lm_loss          | fast.vocabulary.vocabulary_losses |
| 7: attention                  | losses              | attention_loss          | fast.rows.attend_and_compare      |
| 8: hidden states              | losses              | hidden_loss             |                                   |
| 9: 7 and 8, of a matched pair | objective           | matched_pairs           | fast.recording.record_attention   |
| 10: output                    | losses              | output_loss             | fast.vocabulary.vocabulary_losses |
| 11: the weighted sum          | objective           | DistillationObjective   |                                   |
| 11: g(l)                      | losses              | layer_map               |                                   |
| 12: embeddings                | losses              | embedding_loss          |                                   |

A newcomer reads modeling_minialbert (the loop), losses (the reference), objective (their sum, as data) and trainer (one
optimiser step). `encoders` opens any encoder, and answers an `objective.Request` with an `objective.EncoderView`. A run
is `plan` and `distill`; a student's first weights come from `start`. On a GPU `fast.rows_triton` does what `fast.rows`
does.
"""
